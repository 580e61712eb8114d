"""`accelerate launch` as the command `llmrec` runs it: errors for people, and no word on the defaults that it took."""

import logging
import sys

from accelerate.commands.launch import launch_command, launch_command_parser

from llmrec.messages import print_error


def main() -> None:
    sys.excepthook = print_error
    logger = logging.getLogger(launch_command.__module__)
    logger.addFilter(lambda record: "had defaults used instead" not in record.getMessage())
    parser = launch_command_parser()
    parser.error = _refuse  # which prints the usage of some hundred flags
    try:
        launch_command(parser.parse_args())
    except AssertionError as error:  # so accelerate refuses settings
        _refuse(str(error))


def _refuse(message: str) -> None:
    raise ValueError(f"accelerate launch: {message}")


if __name__ == "__main__":
    main()
