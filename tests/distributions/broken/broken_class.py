from kdkit import hookimpl


class Plugin:
    def __init__(self, settings):
        self.settings = settings

    @hookimpl
    def kdkit_stages(self):
        return []
