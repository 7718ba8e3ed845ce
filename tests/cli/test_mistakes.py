from pathlib import Path

import pytest

from tests.cli.command import QUICK, ROOT, SCENES, SMALL, Cli, one_error
from tests.report.folders import BASELINE, make, trial

MISTAKES: list[tuple[list[object], str]] = [
    (["layers", "--architecture", "unett"], "`architecture` must be a known name, but got 'unett'; nearest: 'unet'"),
    (["layers", "--encoder", "resnet19"], "`encoder` must be a known name, but got 'resnet19'; nearest: 'resnet18'"),
    (["layers", "--encoder", "tu-nosuch"], "'tu-nosuch'"),
    (["layers", "--standard", "resolutoin"], "but got 'resolutoin'; nearest: 'resolution'"),
    (["layers", "--standard", "explicit", "method.standard.layers=[encoder.layer9]"], "encoder.layer"),
    (["layers", "--max-taps", "0"], "`max_taps >= 1` must hold, but got 0"),
    (["layers", "--size", "31", "64"], "`size` must be (height, width) of at least 32 pixels, but got (31, 64)"),
    (["layers", "--config", "none.yaml"], "none.yaml must be a readable file"),
    (["layers", "optimizer.epoch=2"], "optimizer.epoch: is no setting; nearest: 'epochs'"),
    (["layers", "epochs"], "must have the form key=value"),
    (["layers", "model.import=no.such:model"], "must be importable"),
    (["train", "none.yaml"], "none.yaml must be a readable file"),
    (["train", "."], "must be a readable file, but: Is a directory"),
    (["train", SCENES, "optimizer.epocs=2"], "optimizer.epocs: is no setting; nearest: 'epochs'"),
    (["train", SCENES, "optimizer.epochs=0"], "`epochs >= 1` must hold, but got 0"),
    (["train", SCENES, "optimizer.lr=fast"], "optimizer.lr"),
    (["train", SCENES, "method.loss=dise"], "but got 'dise'; nearest: 'dice'"),
    (["train", SCENES, "data.kind=cityscape"], "but got 'cityscape'; nearest: 'cityscapes'"),
    (["train", SCENES, "--wandb", "ofline"], "--wandb must be one of auto, online, offline, disabled, but got 'ofline'; nearest: 'offline'"),
    (["train", SCENES, "--output", "file"], "--output must be a folder, but file is a file"),
    (["train", SCENES, "--output", "file/sub"], "is a file"),
    (["train", SCENES, "--output", "search"], "holds another kind of result (study.sqlite3)"),
    (["train", SCENES, "--resume"], "--resume must go with a folder to continue in, but runs/scenes is none"),
    (["train", SCENES, "--resume", "--output", "none"], "but none is none"),
    (["train", QUICK], f"must hold one run, but holds a search (arms, budget, run, sampler, scheduler, space); use: imachsr search {QUICK}"),
    (["train", SCENES, "--data", "none"], "--data sets data.root: leave it out, or choose a data set that is read from a folder, by data.kind"),
    (["search", QUICK, "--data", "none"], "--data sets run.data.root: leave it out, or choose a data set"),
    (["train", ROOT / "launch/camvid.yaml", "--data", "none"], "`data.root` must be CamVid's folder, but "),
    (["train", ROOT / "launch/camvid.yaml", "--data", "search"], "search must hold val/ with valannot/"),
    (["train", SCENES, *SMALL, "method.standard={kind: explicit, layers: [encoder.layer9]}"], "encoder.layer"),
    (["train", SCENES, "--output", "s3://bucket/run"], "`--output` must be a folder, but got s3://bucket/run; mount it (mount-s3, gcsfuse"),
    (["train", SCENES, "--data", "gs://bucket/data"], "`--data` must be a folder, but got gs://bucket/data; mount it"),
    (["search", QUICK, "--output", "s3://bucket"], "`--output` must be a folder, but got s3://bucket; mount it"),
    (["search", QUICK, "--data", "hdfs://host:9000/data"], "`--data` must be a folder, but got hdfs://host:9000/data; mount it"),
    (
        ["doctor", "--storage", "s3://key:hush@bucket/run"],
        "--storage: a storage's address must hold no credentials, but that of s3://bucket/run does",
    ),
    (["train", SCENES, "--output", "s3://bucket/run"], "and give the folder's path, or give the address to --storage"),
    (["train", SCENES, "--storage", "s3:bucket/run"], "--storage: a storage must be an address such as s3://BUCKET/FOLDER"),
    (
        ["train", SCENES, "--storage", "/proc/no/such"],
        "--storage must be a place to write to and to read from, but on this machine file:///proc/no/such is not",
    ),
    (["train", SCENES, "--workers", "-1"], "`--workers` must be N, or MIN:MAX with 1 <= MIN <= MAX, such as 2 or 1:4, but got '-1'"),
    (["train", SCENES, "--workers", "4:2"], "such as 2 or 1:4, but got '4:2'"),
    (["train", SCENES, "--workers", "two"], "but got 'two'"),
    (["train", SCENES, "--address", "auto"], "`--address` must come with `--workers`"),
    (["train", SCENES, "--workers", "2", "--address", "ray://head:10001"], "submit it instead: ray job submit --address http://head:8265"),
    (["train", SCENES, *SMALL, "--workers", "9"], "`optimizer.batch_size` and the number of training samples must be at least 9"),
    (["search", "none.yaml"], "none.yaml must be a readable file"),
    (["search", SCENES], f"must hold a search, but holds one run (data, method, model, optimizer); use: imachsr train {SCENES}"),
    (["search", QUICK, "optimizer.epochs=2"], "a setting of the base run must begin with run., as in run.optimizer.epochs, but got optimizer.epochs"),
    (["space", QUICK, "optimizer.epochs=2"], "must begin with run., as in run.optimizer.epochs"),
    (["study", ROOT / "search_spaces/ablation.yaml", "data.kind=camvid"], "must begin with run., as in run.data.kind"),
    (["search", QUICK, "budgett.trials=2"], "budgett: is no setting; nearest: 'budget'"),
    (["search", QUICK, "--trials", "0"], "`trials >= 1` must hold, but got 0"),
    (["search", QUICK, "--concurrency", "0"], "`concurrency >= 1` must hold, but got 0"),
    (["search", QUICK, "run.optimizer.epochs=2"], "scheduler.grace: must be below optimizer.epochs (2), but got 2"),
    (["search", QUICK, "--wandb", "maybe"], "--wandb must be one of"),
    (["search", QUICK, "--output", "file"], "--output must be a folder, but file is a file"),
    (["search", QUICK, "--output", "training"], "holds another kind of result (checkpoint.pt)"),
    (["search", "--resume", "none"], "--resume must name the result folder of a search, but none holds none"),
    (["search", QUICK, "--resume", "none"], "--resume must name the result folder of a search, but none holds none"),
    (["search", QUICK, "--extend", "3"], "--extend must come with --resume, the folder of the search that gets more trials; a new one has --trials"),
    (["search"], "CONFIG must be the YAML file of a search, such as search_spaces/quickstart.yaml, or --resume a folder to go on in"),
    (["search", QUICK, "--warm-start", "none"], "--warm-start must be the result folder of a search, but none holds none"),
    (["search", ROOT / "search_spaces/camvid.yaml", "--data", "none"], "`data.root` must be CamVid's folder"),
    (["search", QUICK, "run.model.encoder=resnet19"], "'resnet19'; nearest: 'resnet18'"),
    (["report", "none"], "none must be the --output folder of a search, but has no summary.json"),
    (["report", "file"], "file must be the --output folder of a search"),
    (["report", "training"], "holds a single training"),
    (["report", "study"], "study must be the --output folder of a search, but holds a study; see study/study.md"),
    (["watch", "study"], "holds a study; see study/study.md"),
    (["train", "empty.yaml"], "empty.yaml must hold settings, but is empty; {} stands for the defaults"),
    (["study", "empty.yaml"], "empty.yaml must hold settings, but is empty"),
    (["train", SCENES, "name=../x"], "`name` must be a folder's name, where results go to runs/NAME, but got '../x'; or name a folder with --output"),
    (["search", QUICK, "name=/tmp/x"], "`name` must be a folder's name"),
    (["search", QUICK, "name=.."], "`name` must be a folder's name"),
    (["study", ROOT / "search_spaces/ablation.yaml", "name=a/b"], "`name` must be a folder's name"),
    (["report", "begun"], "none has yet; try again later"),
    (["export", "none"], "none must be the --output folder of a search"),
    (["export", "search", "--trial", "7"], "--trial must be one of 0, 1, but got 7"),
    (["export", "search", "--out", "file"], "file must not exist yet"),
    (["export", "search", "--out", "file/x.yaml"], "--out must be a file that can be written"),
    (["export", "unfinished"], "must have finished to be exported, but none has"),
    (["evaluate", "none"], "none must hold a checkpoint, but does not; give the --output folder of a training"),
    (["evaluate", "file"], "file must be the --output folder of a training, but is a file"),
    (["evaluate", "training"], "training must hold checkpoints of schema 2, but holds checkpoint.pt of schema 1, made by an older imachsr"),
    (["evaluate", "broken"], "broken/checkpoints must hold a whole checkpoint, but 00000008.json is not JSON; put a copy back, or train again"),
    (["evaluate", "broken", "--which", "lates"], "`which` must be one of latest, best, but got 'lates'; nearest: 'latest'"),
    (["evaluate", "broken", "--split", "vall"], "--split must be one of train, val, test, but got 'vall'; nearest: 'val'"),
    (["train", SCENES, "--output", "broken"], "broken must be a new folder, but holds a training; give another --output"),
    (["export-model", "broken"], "broken/checkpoints must hold a whole checkpoint, but 00000008.json is not JSON"),
    (["export-model", "search"], "search must be the folder of a training, but holds a search; one trial's is search/trials/0000"),
    (["export-model", "broken", "--format", "onxx"], "--format must be one of state-dict, exported, onnx, but got 'onxx'; nearest: 'onnx'"),
    (
        ["export-model", "broken", "--out", "model.onnx"],
        "--out must end in .pt or .pth for --format state-dict, but got model.onnx; or is --format onnx",
    ),
    (["evaluate", "search"], "search must be the folder of a training, but holds a search; one trial's is search/trials/0000"),
]


@pytest.fixture
def folders(tmp_path: Path) -> None:
    """What a user may point at by mistake."""
    (tmp_path / "file").write_text("x")
    make(tmp_path / "search", [BASELINE, trial(1)], best=1)
    (tmp_path / "search/study.sqlite3").write_bytes(b"")
    make(tmp_path / "unfinished", [trial(0, "FAIL", value=None)], best=None)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/search.yaml").write_text("name: x\n")
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.yaml").write_text("name: x\n")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    (tmp_path / "training").mkdir()
    (tmp_path / "training/summary.json").write_text('{"schema": 1, "metrics": {}}')
    (tmp_path / "training/checkpoint.pt").write_bytes(b"x")
    (tmp_path / "broken/checkpoints").mkdir(parents=True)
    (tmp_path / "broken/checkpoints/00000008.json").write_bytes(b"not a checkpoint")


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("args", "wording"), MISTAKES, ids=lambda each: " ".join(map(str, each)).replace(f"{ROOT}/", "") if isinstance(each, list) else ""
)
def test_a_mistake_is_one_message(args: list[object], wording: str, run: Cli, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    assert wording in one_error(run(*args))
    # Nothing is left that the next try would stumble over.
    assert set(tmp_path.rglob("*")) == before
