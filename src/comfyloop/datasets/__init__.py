"""Data sets on their way in: files received, looked at, read row by row, and stored in one transaction.

What has come so far lies in a folder below the home, and nothing of it is feedback before all of it is. A kill at any
moment leaves what `take` goes on from; what is given up leaves nothing.
"""

from comfyloop.datasets.place import DataSetFolder, open_place, places
from comfyloop.datasets.record import DataSet, DataSetState, Request, SentFile
from comfyloop.datasets.running import Imports

__all__ = [
    "DataSet",
    "DataSetFolder",
    "DataSetState",
    "Imports",
    "Request",
    "SentFile",
    "open_place",
    "places",
]
