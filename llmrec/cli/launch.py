"""`accelerate launch` as the command `llmrec` runs it: errors for people, and no word on the defaults that it took."""

import logging
import sys

from accelerate.commands.launch import main

from llmrec.messages import print_error

if __name__ == "__main__":
    sys.excepthook = print_error
    logging.getLogger(main.__module__).addFilter(lambda record: "had defaults used instead" not in record.getMessage())
    main()
