"""Wizards: a session by hand and eye.

| room | what is in it |
|---|---|
| `window.py` | the tabs, and how a button carries out a line |
| `panes/` | what each tab shows, a module a tab |
| `form.py`, `editors.py` | a class's fields as controls |
| `draft.py`, `judgement.py` | the pipeline that is put together; what is said of it before it runs |
| `worker.py` | the thread in which things are done |
| `hand.py` | the same worked from Python |
| `opening.py` | what `%kd wizard` shows, and what is left of it without a kernel |
"""
