from molfun.structures.files import write_structure as write_structure
from molfun.structures.folded import FoldedStructure as FoldedStructure
from molfun.structures.folded import Maker as Maker
from molfun.structures.modelcif import mmcif_text as mmcif_text
from molfun.structures.pdb import pdb_text as pdb_text
from molfun.structures.scoring.score import StructureScores as StructureScores
from molfun.structures.scoring.score import score as score

__all__: list[str]
