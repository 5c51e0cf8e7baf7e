import importlib
import json
import sys

module, function = sys.argv[1].split(".")
told = getattr(importlib.import_module(f"benchmark.peers.{module}"), function)(**json.loads(sys.argv[2]))
print(json.dumps(told), flush=True)
