"""The parallel core: names at birth, one table, one shard_map (see CONTRIBUTING)."""

from nn.parallel.collectives import axis_index as axis_index
from nn.parallel.collectives import axis_size as axis_size
from nn.parallel.collectives import psum as psum
from nn.parallel.collectives import vary as vary
from nn.parallel.convolution import conv as conv
from nn.parallel.convolution import gather_channels as gather_channels
from nn.parallel.mesh import AXES as AXES
from nn.parallel.mesh import BATCH_AXES as BATCH_AXES
from nn.parallel.mesh import Rules as Rules
from nn.parallel.mesh import batch_spec as batch_spec
from nn.parallel.mesh import make_mesh as make_mesh
from nn.parallel.mesh import mesh_shape as mesh_shape
from nn.parallel.mesh import parse_rules as parse_rules
from nn.parallel.mesh import platform_of as platform_of
from nn.parallel.mesh import row_shares as row_shares
from nn.parallel.mesh import shardings as shardings
from nn.parallel.spmd import spmd as spmd
from nn.parallel.tensor import einsum as einsum
from nn.parallel.tensor import enter as enter
from nn.parallel.tensor import leave as leave
from nn.parallel.weight import Layer as Layer
from nn.parallel.weight import Named as Named
from nn.parallel.weight import Weight as Weight
from nn.parallel.weight import bound_axis as bound_axis
from nn.parallel.weight import specs as specs
from nn.parallel.weight import unbox as unbox
