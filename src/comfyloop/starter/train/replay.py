"""Text chat stays as it was: while the language model learns to read pictures, it is held to its own answers.

Before the training starts, the untouched model answers a varied set of questions; its last hidden states on
those answers are kept. The output layer never changes, so they give its full distribution again at will.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_TOPICS = """
the ocean|electric cars|the Roman Empire|baking bread|machine learning|the human heart|chess|volcanoes
jazz|gardening|online shopping|the moon|vaccines|poetry|football|time management|the stock market|coffee
dinosaurs|bicycles|photosynthesis|job interviews|the French Revolution|healthy food|space travel
learning a language|climate change|cats|camping|the internet|a product launch|a team meeting|a lost key
an old lighthouse|a brave mouse|friendship|money|tea
"""
_FORMS = """
What is {}?|Explain {} to a child.|Write a short poem about {}.|Give me three facts about {}.
Tell me a short story about {}.|Why is {} important?|Summarize what you know about {} in one sentence.
Write an email about {}.|How does one start with {}?|What are the pros and cons of {}?
Write a headline about {}.|List five words about {}.|What should I know about {}?
"""
_PLAIN = """
Hello!|How are you?|Who are you?|Thank you.|What can you do?|What is 7 times 8?|What is 15 minus 6?
Name a colour.|Translate "good morning" into Spanish.|What is the capital of Japan?
What is the capital of Brazil?|Who painted the Mona Lisa?|Who discovered gravity?
What is the largest planet?|How many days are in a year?|Write a Python function that adds two numbers.
Fix the grammar: she go to school.|Give me a name for a dog.|What is the opposite of hot?
Say something funny.
"""
QUESTIONS = 160
ANSWER_TOKENS = 40


def entries(table: str) -> list[str]:
    return table.replace("\n", "|").strip("|").split("|")


def questions() -> list[str]:
    rng = random.Random(3)
    made = [form.format(topic) for topic in entries(_TOPICS) for form in entries(_FORMS)]
    plain = entries(_PLAIN)
    return plain + rng.sample(made, QUESTIONS - len(plain))


class Replay:
    """The untouched model's answers, and the loss that keeps the changed model at them."""

    def __init__(
        self,
        model: Any,  # the whole FastVLM, untouched
        tokenizer: PreTrainedTokenizerBase,
        prompt_of: Callable[[str], str],
    ) -> None:
        self.head: nn.Module = model.lm_head
        self.items: list[tuple[Tensor, int, Tensor]] = []  # ids, where the answer starts, hidden states
        prompts = [tokenizer(prompt_of(q))["input_ids"] for q in questions()]
        prompts.sort(key=len)
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        with torch.inference_mode():
            for at in range(0, len(prompts), 20):
                some = prompts[at : at + 20]
                width = max(map(len, some))
                ids = torch.tensor([[pad] * (width - len(p)) + p for p in some])
                made = model.generate(
                    input_ids=ids, attention_mask=(ids != pad).long(), max_new_tokens=ANSWER_TOKENS
                )
                for prompt, row in zip(some, made[:, width:].tolist(), strict=True):
                    answer = row[: row.index(end) + 1] if end in row else row
                    whole = torch.tensor(prompt + answer)
                    states = model.model.language_model(input_ids=whole[None]).last_hidden_state[0]
                    self.items.append((whole, len(prompt), states[len(prompt) - 1 : -1].clone()))

    def loss(self, language_model: nn.Module, rng: random.Random, size: int) -> Tensor:
        """KL divergence from the untouched model, over the answers' tokens."""
        some = rng.sample(self.items, size)
        length = max(len(ids) for ids, _, _ in some)
        batch = torch.zeros(size, length, dtype=torch.long)
        mask = torch.zeros_like(batch)
        for i, (ids, _, _) in enumerate(some):
            batch[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
        states = language_model(input_ids=batch, attention_mask=mask).last_hidden_state
        now = torch.cat([states[i, start - 1 : len(ids) - 1] for i, (ids, start, _) in enumerate(some)])
        before = torch.cat([kept for _, _, kept in some])
        with torch.no_grad():
            wanted = self.head(before).float().log_softmax(-1)
        return F.kl_div(
            self.head(now).float().log_softmax(-1), wanted, log_target=True, reduction="batchmean"
        )
