"""Models with the interfaces of public benchmarks: mteb and clip-benchmark."""
