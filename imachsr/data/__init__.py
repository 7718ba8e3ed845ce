"""Data sets; each is one frozen dataclass, and a name in the union on the last line."""

from imachsr.data.camvid import CamVid
from imachsr.data.folder import Folder
from imachsr.data.imported import Imported
from imachsr.data.samples import Dataset, Samples, Split
from imachsr.data.scenes import Scenes

__all__ = ["CamVid", "Dataset", "DatasetSpec", "Folder", "Imported", "Samples", "Scenes", "Split"]

DatasetSpec = Scenes | CamVid | Folder | Imported
