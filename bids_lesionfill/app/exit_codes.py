"""Exit codes of the command line."""

OK, SOME_FAILED, USAGE, UNKNOWN_ARGUMENT, NOTHING_TO_DO, INTERNAL, INTERRUPTED = 0, 1, 2, 64, 66, 70, 130
INVALID, ENGINE_UNAVAILABLE = 65, 69

MEANINGS = {
    OK: 'all participants done',
    SOME_FAILED: 'some participants failed; participants.tsv and the reports name them and the reasons',
    USAGE: 'wrong usage, or a path that does not exist',
    UNKNOWN_ARGUMENT: 'unknown argument',
    INVALID: 'the dataset is not valid BIDS',
    NOTHING_TO_DO: 'nothing to do: no image with a lesion mask (synth: no image with a T1w); group: nothing was filled '
    'or measured of those asked for',
    ENGINE_UNAVAILABLE: 'a thickness engine that was asked for is not available',
    INTERNAL: 'internal error',
    INTERRUPTED: "interrupted; 129, 143: ended by SIGHUP (the terminal is gone), SIGTERM (a scheduler's time is up)",
}
