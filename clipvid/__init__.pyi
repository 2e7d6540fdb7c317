"""Public names of the package for type checkers and editors, which cannot follow `__getattr__`."""

from clipvid import convert as convert
from clipvid.adapters import ADAPTERS as ADAPTERS
from clipvid.experiments.python_api import Run as Run
from clipvid.experiments.python_api import evaluate as evaluate
from clipvid.experiments.python_api import finetune as finetune
from clipvid.hub import from_pretrained as from_pretrained
from clipvid.hub import push_to_hub as push_to_hub
from clipvid.inference.auto_classes import ClipVidConfig as ClipVidConfig
from clipvid.inference.auto_classes import ClipVidForVideoClassification as ClipVidForVideoClassification
from clipvid.inference.auto_classes import ClipVidVideoProcessor as ClipVidVideoProcessor
from clipvid.inference.bank import AdapterBank as AdapterBank
from clipvid.inference.explain.explanation import Explanation as Explanation
from clipvid.inference.explain.explanation import explain as explain
from clipvid.inference.predictor import Predictor as Predictor
from clipvid.inference.search.building import build_index as build_index
from clipvid.inference.search.index import Index as Index
from clipvid.inference.search.index import Moment as Moment
from clipvid.model import ModelConfig as ModelConfig
from clipvid.model import VideoCLIP as VideoCLIP
from clipvid.model import VideoCLIPOutput as VideoCLIPOutput
from clipvid.model.factory import create_model as create_model

__version__: str
__all__: list[str]

class ClipvidError(Exception): ...
class InputError(ClipvidError, ValueError): ...
class RunError(ClipvidError, RuntimeError): ...
