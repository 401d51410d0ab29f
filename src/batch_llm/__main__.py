"""``python -m batch_llm``: hands over to the command line."""

import sys

from batch_llm.cli import main

sys.exit(main())
