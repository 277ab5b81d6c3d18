from molfun.heads.affinity import AffinityHead as AffinityHead
from molfun.heads.base import Head as Head
from molfun.heads.chains import CrossAttentionHead as CrossAttentionHead
from molfun.heads.chains import PairMLPHead as PairMLPHead
from molfun.heads.confidence import ConfidenceHead as ConfidenceHead
from molfun.heads.contact import ContactHead as ContactHead
from molfun.heads.conv import ConvHead as ConvHead
from molfun.heads.energy import EnergyHead as EnergyHead
from molfun.heads.pooled import LinearHead as LinearHead
from molfun.heads.pooled import MLPHead as MLPHead
from molfun.heads.structure import StructureHead as StructureHead

__all__: list[str]
