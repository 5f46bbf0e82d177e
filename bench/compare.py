"""How far tensors are from a reference: one line of JSON, {name: error}.

    python compare.py REFERENCE OTHER

The error is |other - reference| / |reference|; axes of one element do not count.
"""
import json
import sys

from safetensors.torch import load_file

reference, other = (load_file(path) for path in sys.argv[1:])
errors = {}
for name, expected in reference.items():
    expected = expected.double().flatten()
    found = other[name].double().flatten()
    errors[name] = float((found - expected).norm() / expected.norm())
print(json.dumps(errors))
