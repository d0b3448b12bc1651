"""An engine in a process of its own, to be killed: `python -m tests.serving.killed OUT`.

It reads a request from each line, as JSON, with what it edits in base64, and prints the id of its job once it is
accepted.
"""

import base64
import json
import subprocess
import sys

import tests.conftest  # noqa: F401  # sets the environment before jax is imported
from tests.helpers.configs import ROOT


class EngineProcess:
    """The process, killed at the end of its `with` block."""

    def __init__(self, out):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.killed", str(out)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def submit(self, request, inputs=None):
        """Returns the id of the job of a request, of which `inputs` has the files by name."""
        files = {name: base64.b64encode(data).decode() for name, data in (inputs or {}).items() if data is not None}
        self.process.stdin.write(json.dumps([request, files]) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def main(out):
    from imagen_jax.pipelines.imagen import ImagenPipeline
    from imagen_jax.serving.engine import Engine
    from imagen_jax.serving.jobs import EditInputs, JobRequest
    from tests.helpers.configs import one_device

    engine = Engine(ImagenPipeline.from_pretrained("shapes", one_device()), out, batch_sizes=(1, 4), warm_up=False)
    engine.start()
    for line in sys.stdin:
        request, files = json.loads(line)
        inputs = EditInputs(**{name: base64.b64decode(text) for name, text in files.items()}) if files else None
        print(engine.submit(JobRequest.from_json(request), "client", inputs).id, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
