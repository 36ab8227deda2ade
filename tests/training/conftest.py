import sys
from pathlib import Path

# pytest's importlib mode puts no test folder on the path; `toy_task` is shared.
sys.path.insert(0, str(Path(__file__).parent))
