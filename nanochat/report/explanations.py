"""What the metrics of the report mean, a line for each; and published scores to compare with."""

EXPLANATIONS = {
    "bits per byte, text": "Loss on validation text; lower is better.",
    "bits per byte, answers": "The same on answers in held-out chats.",
    "CORE": "Mean of 22 tasks: 0 is guessing, 1 is perfect.",
    "ChatCORE": "Mean of the six chat tasks, on the same scale.",
    "ARC-Easy": "Science questions; guessing gives 25 %.",
    "ARC-Challenge": "Harder science questions; guessing gives 25 %.",
    "MMLU": "Choices from 57 subjects; guessing gives 25 %.",
    "GSM8K": "Word problems, with the calculator.",
    "HumanEval": "Python functions that must pass their tests.",
    "SpellingBee": "How often a letter is in a word.",
    "multiple choice, plain text": "The most likely of four; guessing gives 25 %.",
    "facts": "People, animals and things of its world.",
    "unknown": "Not in that world: the answer is not to know.",
    "reading": "A short story, and a question about it.",
    "arithmetic": "Sums of four digits, with the calculator.",
    "word_problems": "Sums in two steps, told as a story.",
    "spelling": "A word by letters, or how often it has one.",
    "calendar": "Days, months and seasons.",
    "ordering": "Which is larger, and which comes next.",
    "choice": "A fact as one of up to four choices.",
    "repeat": "Repeat a few words.",
    "lists": "Find a row of a list in the question.",
    "talk": "Small talk, and who the model is.",
    "memory": "What was said earlier in the conversation.",
    "all families": "All questions about the primer world.",
    "unseen paraphrases": "Paraphrases never used in training.",
    "typed by a person": "Questions that a person wrote by hand.",
    "tok/s": "Tokens trained on per second.",
    "MFU, share of the peak": "Model FLOP/s as a share of what the device can do.",
    "last loss": "Training loss of the last step, in nats per token.",
}

GPT2 = ("124M", "355M", "774M", "1.5B")
GPT2_CORE = (0.113891, 0.184903, 0.214641, 0.256525)
# Accuracy in percent on the tasks of CORE (baselines v1) of openai-community/gpt2, gpt2-medium,
# gpt2-large and gpt2-xl, as published with the evaluation bundle; the three larger models were
# measured on at most 1,000 items of a task.
GPT2_ACCURACY = {
    "hellaswag_zeroshot": (30.8504, 39.0, 44.0, 50.2),
    "jeopardy": (0.1889, 4.4, 4.5, 9.2),
    "bigbench_qa_wikidata": (28.2663, 42.8, 48.0, 53.1),
    "arc_easy": (41.2458, 48.0, 53.5, 59.5),
    "arc_challenge": (22.1843, 26.2, 26.4, 29.9),
    "copa": (60.0, 66.0, 67.0, 67.0),
    "commonsense_qa": (22.4406, 19.6, 27.0, 22.7),
    "piqa": (62.296, 67.0, 69.8, 72.5),
    "openbook_qa": (27.8, 30.8, 31.8, 34.6),
    "lambada_openai": (32.2919, 42.6, 48.8, 52.3),
    "hellaswag": (30.7907, 39.5, 44.4, 51.2),
    "winograd": (57.8755, 65.5678, 68.8645, 71.4286),
    "winogrande": (48.6188, 52.1, 54.1, 56.9),
    "bigbench_dyck_languages": (15.5, 17.0, 22.5, 24.7),
    "agi_eval_lsat_ar": (22.6087, 23.0435, 25.6522, 27.3913),
    "bigbench_cs_algorithms": (41.9697, 45.6, 44.0, 41.7),
    "bigbench_operators": (8.5714, 10.0, 11.4286, 15.7143),
    "bigbench_repeat_copy_logic": (3.125, 6.25, 6.25, 9.375),
    "squad": (5.8278, 16.9, 23.5, 30.9),
    "coqa": (13.3659, 22.7, 23.0, 28.0),
    "boolq": (55.2294, 60.6, 56.7, 61.9),
    "bigbench_language_identification": (25.66, 26.9, 26.1, 25.0),
}

# The tasks of ChatCORE, with the accuracy of guessing in percent.
CHAT_TASKS = {
    "ARC-Easy": 25.0, "ARC-Challenge": 25.0, "MMLU": 25.0,
    "GSM8K": 0.0, "HumanEval": 0.0, "SpellingBee": 0.0,
}  # fmt: skip
