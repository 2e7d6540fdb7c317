"""One file per subject of `clipvid benchmark`, the cost model and the statistics over seeds."""
