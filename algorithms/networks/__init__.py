"""Networks, distributions and normalisers that policies are made of; `rltrain.networks` is what stands here."""

from rltrain.algorithms.networks.cnn import CNNS as CNNS
from rltrain.algorithms.networks.cnn import ImpalaCNN as ImpalaCNN
from rltrain.algorithms.networks.cnn import NatureCNN as NatureCNN
from rltrain.algorithms.networks.cnn import SmallCNN as SmallCNN
from rltrain.algorithms.networks.encoder import Encoder as Encoder
from rltrain.algorithms.networks.encoder import OneHot as OneHot
from rltrain.algorithms.networks.mlp import MLP as MLP
from rltrain.algorithms.networks.mlp import init_orthogonal as init_orthogonal
from rltrain.algorithms.networks.recurrent import RecurrentCore as RecurrentCore
