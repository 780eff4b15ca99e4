"""The wizard: build and run a pipeline with forms.

| module | contents |
|---|---|
| `draft.py`, `validation.py` | the pipeline being edited, and which of its steps are valid |
| `worker.py` | the thread that runs lines |
| `controller.py` | the state and the actions: session, draft, worker |
| `tab.py`, `tabs/` | the tabs, one module each |
| `palette.py`, `step_card.py`, `figures.py` | parts of the Build tab |
| `run_steps.py` | the steps of a run, its time and its log |
| `layer_patterns.py` | patterns from the layers that are checked in the Layers tab |
| `proposals.py` | pipelines that the Start tab proposes |
| `window.py` | the widget that holds the tabs |
| `driver.py` | control of a wizard from Python |
| `launch.py` | the output of `%kd wizard`, with widgets or as text |
"""
