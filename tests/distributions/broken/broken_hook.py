from kdkit import hookimpl


@hookimpl
def kdkit_stagez():
    return []
