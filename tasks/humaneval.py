"""Programs to be written from a docstring: openai/openai_humaneval (arXiv 2107.03374)."""

import re

from nanochat import dataset
from nanochat.data import shards
from nanochat.execution import execute_code
from tasks.common import Conversation, Task, final_text, shuffled

REPO = "openai/openai_humaneval"
FILE = "openai_humaneval/test-00000-of-00001.parquet"
FENCED = re.compile(r"```(?:python)?\s*\n(.*?)```", re.DOTALL)


class HumanEval(Task):
    """164 problems; an answer is judged by running it, which needs the sandbox."""

    def __init__(self, start: int = 0, stop: int | None = None) -> None:
        super().__init__(start, stop)
        self.rows = shuffled(shards.read_rows(dataset.task_file(REPO, FILE)))

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        solution = f"{row['prompt']}\n{row['canonical_solution']}"
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": solution},
            ],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Raises UserError as long as there is no sandbox to run the program in."""
        text = final_text(completion)
        fenced = FENCED.search(text)
        imports = leading_imports(conversation["messages"][0]["content"])
        body = fenced[1] if fenced else text
        check = f"check({conversation['entry_point']})"
        program = "\n\n".join([imports, body, conversation["test"], check])
        return execute_code(program).success


def leading_imports(prompt: str) -> str:
    """Import lines at the top of a prompt."""
    lines = []
    for line in prompt.splitlines():
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line.strip():
            break
    return "\n".join(lines)
