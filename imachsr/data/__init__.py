"""Data sets; each is one frozen dataclass, and a name in the union on the last line."""

from imachsr.data.camvid import CamVid
from imachsr.data.cityscapes import Cityscapes
from imachsr.data.folder import Folder
from imachsr.data.imported import Imported
from imachsr.data.samples import Dataset, Samples, Split
from imachsr.data.scenes import Scenes
from imachsr.data.synthia_rand import SynthiaRand
from imachsr.data.synthia_sf import SynthiaSF

__all__ = ["CamVid", "Cityscapes", "Dataset", "DatasetSpec", "Folder", "Imported", "Samples", "Scenes", "Split", "SynthiaRand", "SynthiaSF"]

DatasetSpec = Scenes | CamVid | Cityscapes | SynthiaSF | SynthiaRand | Folder | Imported
