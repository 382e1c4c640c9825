"""Start the CLI from a checkout: `python wrapper`."""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until there is a program that could say something, Ctrl-C just ends it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from vmw.cli import main

    main()
