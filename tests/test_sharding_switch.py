"""Switch of Accelerate to FSDP2 on CPUs."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from clipvid import RunError, distributed


class State:
    """State that stores writes, or ignores them."""

    def __init__(self, follows: bool) -> None:
        object.__setattr__(self, "follows", follows)
        self.__dict__["distributed_type"] = DistributedType.MULTI_CPU

    def __setattr__(self, name: str, value: object) -> None:
        if self.follows or name != "distributed_type":
            self.__dict__[name] = value


class FakeAccelerator:
    """Parts of an Accelerator that the switch uses. `version` is the reported version of FSDP."""

    def __init__(self, state: State, version: int) -> None:
        self.state, self.version = state, version

    @property
    def distributed_type(self) -> DistributedType:
        return self.state.distributed_type

    @property
    def is_fsdp2(self) -> bool:
        return self.distributed_type == DistributedType.FSDP and self.version == 2


@pytest.mark.parametrize(
    ("state", "partial", "version", "works"),
    [(True, True, 2, True), (False, True, 2, False), (True, False, 2, False), (True, True, 1, False)],
)
def test_a_switch_without_effect_is_an_error(
    monkeypatch, state: bool, partial: bool, version: int, works: bool
) -> None:
    whole, part = State(state), State(partial)
    monkeypatch.setattr(distributed, "AcceleratorState", lambda: whole)
    monkeypatch.setattr(distributed, "PartialState", lambda: part)
    monkeypatch.setattr(distributed, "FullyShardedDataParallelPlugin", lambda: SimpleNamespace(fsdp_version=2))
    accelerator = FakeAccelerator(whole, version)
    if works:
        distributed._shard_on_cpus(accelerator)
        assert accelerator.is_fsdp2
    else:
        with pytest.raises(RunError, match="does not shard on CPUs"):
            distributed._shard_on_cpus(accelerator)
