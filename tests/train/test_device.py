import itertools

import pytest
import torch
from torch import nn

from imachsr.config.schema import ConfigError
from imachsr.config.training import Compute
from imachsr.train.device import Machine, Placement, claim_gpu, decide, own_gpu, usage

MACHINES = [
    Machine(has_cuda=cuda, cuda_bfloat16=cuda and gpu, cpu_bfloat16=cpu)
    for cuda, gpu, cpu in itertools.product([False, True], repeat=3)
    if cuda or not gpu
]
COMPUTES = [
    Compute(device=device, precision=precision, channels_last=layout)
    for device, precision, layout in itertools.product(["auto", "cpu", "cuda"], ["auto", "float32", "bfloat16"], ["auto", "on", "off"])
]


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: f"{c.device}-{c.precision}-{c.channels_last}")
def test_decisions_keep_their_rules_on_every_machine(machine: Machine, compute: Compute) -> None:
    if compute.device == "cuda" and not machine.has_cuda:
        with pytest.raises(ConfigError, match=r"`compute.device` must be a device of this machine, but got 'cuda'.*use auto or cpu"):
            decide(compute, machine)
        return
    placement = decide(compute, machine)
    assert placement.device in ("cpu", "cuda")
    # What is asked for is done.
    if compute.device != "auto":
        assert placement.device == compute.device
    if compute.precision != "auto":
        assert placement.is_bfloat16 == (compute.precision == "bfloat16")
    if compute.channels_last != "auto":
        assert placement.is_channels_last == (compute.channels_last == "on")
    # What is left open goes to what the hardware has.
    if compute.device == "auto":
        assert (placement.device == "cuda") == machine.has_cuda
    if compute.precision == "auto":
        assert placement.is_bfloat16 == {"cpu": machine.cpu_bfloat16, "cuda": machine.cuda_bfloat16}[placement.device]
    if compute.channels_last == "auto":
        # float32 on a GPU is the one case in which NCHW is not slower.
        assert placement.is_channels_last == (not (placement.device == "cuda" and not placement.is_bfloat16))


def test_this_machine_is_described_as_torch_sees_it() -> None:
    here = Machine.here()
    assert here.has_cuda == torch.cuda.is_available()
    if not here.has_cuda:
        assert not here.cuda_bfloat16


@pytest.mark.parametrize(
    ("local_rank", "current", "count", "taken"),
    [(0, 0, 4, 0), (3, 0, 4, 3), (3, 3, 4, 3), (1, 2, 4, 2), (2, 0, 1, 0)],
    ids=["first", "torchrun", "Ray has chosen", "the user has chosen", "each sees its own"],
)
def test_a_process_takes_the_gpu_of_its_number_unless_one_is_chosen(local_rank: int, current: int, count: int, taken: int) -> None:
    assert own_gpu(local_rank, current=current, count=count) == taken


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="the processes on a machine must be at most its 2 GPUs, but there is one of number 2; start fewer"):
        own_gpu(2, current=0, count=2)


def test_on_a_cpu_no_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    claim_gpu(Placement(device="cpu", is_bfloat16=False, is_channels_last=False))
    assert not torch.cuda.is_initialized()


def test_bfloat16_that_a_gpu_only_emulates_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Turing GPU, which torch says supports it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not decide(Compute(device="cuda"), Machine.here()).is_bfloat16


def test_what_each_workers_gpu_does_has_a_key_of_its_own_and_a_silent_driver_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    if torch.cuda.is_available():
        pytest.skip("the message is for a machine where NVML does not answer")
    rows = [usage("cuda", rank) for rank in (0, 3, 3)]
    assert [set(row) - {"memory/peak_mib"} for row in rows] == [{"gpu/0/memory_mib"}, {"gpu/3/memory_mib"}, {"gpu/3/memory_mib"}]
    (told,) = [str(each.message) for each in recwarn]
    assert told.startswith("gpu/RANK/utilization must come from NVML, but it does not answer (NVML")
    assert set(usage("cpu")) == {"memory/peak_mib"}


@pytest.mark.parametrize(("is_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_only_the_forward_computes_in_bfloat16(is_bfloat16: bool, dtype: torch.dtype) -> None:
    placement = Placement(device="cpu", is_bfloat16=is_bfloat16, is_channels_last=False)
    net = placement.put_net(nn.Conv2d(3, 4, 1))
    with placement.autocast():
        assert net(torch.randn(1, 3, 4, 4)).dtype == dtype
    assert net(torch.randn(1, 3, 4, 4)).dtype == torch.float32
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_weights_of_five_axes_keep_theirs() -> None:
    net = nn.ModuleDict({"image": nn.Conv2d(2, 3, 3), "volume": nn.Conv3d(2, 3, 3)})
    net.register_buffer("table", torch.randn(1, 2, 3, 4, 5))
    Placement(device="cpu", is_bfloat16=False, is_channels_last=True).put_net(net)
    assert net["image"].weight.is_contiguous(memory_format=torch.channels_last)
    assert net["volume"].weight.is_contiguous()
    assert net.get_buffer("table").is_contiguous()


@pytest.mark.parametrize("is_channels_last", [True, False])
def test_layout_of_net_and_images_changes_strides_and_no_value(is_channels_last: bool) -> None:
    placement = Placement(device="cpu", is_bfloat16=False, is_channels_last=is_channels_last)
    images, net = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 4, 3)
    weight, values = net.weight.detach().clone(), images.clone()
    net, images = placement.put_net(net), placement.put_images(images)
    for tensor, before in ((net.weight, weight), (images, values)):
        assert torch.equal(tensor, before)
        assert tensor.is_contiguous(memory_format=torch.channels_last) == is_channels_last
        assert tensor.is_contiguous() != is_channels_last
