"""Summarization, translation and text-to-text against transformers' own generate."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.small_models import encoder_decoder

from trainyard.errors import UserError
from trainyard.inference.predictor import Predictor
from trainyard.inference.tasks.text_to_text import Summarization, TextToText, Translation

TEXTS = ["in the bab", "the the the Grüße the end", "a"]


@pytest.fixture(scope="module", params=["T5", "Bart"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_decoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> TextToText:
    return TextToText.load(str(folder))


def generated(folder: Path, text: str, **options: Any) -> list[str]:
    """transformers alone, one text at a time."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    with torch.no_grad():
        tokens = model.generate(**tokenizer(text, return_tensors="pt"), **options)
    return [str(answer) for answer in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 15},
        {"max_length": 9},
        {"max_new_tokens": 15, "min_length": 12, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "num_beams": 4, "early_stopping": True},
        {"max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_answers_equal_generate(
    predictor: TextToText, folder: Path, options: dict[str, Any]
) -> None:
    expected = [generated(folder, text, do_sample=False, **options) for text in TEXTS]
    every = predictor(TEXTS, **options)
    nested = every if options.get("num_return_sequences") else [[answer] for answer in every]
    assert [[a["generated_text"] for a in answers] for answers in nested] == expected
    inside = predictor(TEXTS[0], generate_parameters=options)
    assert [answer["generated_text"] for answer in inside] == expected[0]


def test_draws_do_not_depend_on_their_batch(predictor: TextToText) -> None:
    requests = [
        predictor.preprocess(text, {"max_new_tokens": 12, "temperature": 1.5, "seed": seed})
        for seed, text in enumerate(TEXTS)
    ]
    rows = [row for request in requests for row in request.rows]
    for row, [result] in zip(rows, predictor.forward(rows), strict=True):
        assert result.tokens == predictor.forward([row])[0][0].tokens
    assert len({tuple(result.tokens) for [result] in predictor.forward(rows)}) == len(rows)


def test_the_models_own_defaults_are_followed(tmp_path: Path) -> None:
    defaults = {"num_beams": 2, "max_length": 9, "no_repeat_ngram_size": 2}
    folder = encoder_decoder(tmp_path, "Bart", generation=defaults)
    predictor = Summarization.load(str(folder))
    assert predictor(TEXTS[1]) == [{"summary_text": generated(folder, TEXTS[1])[0]}]
    longer = generated(folder, TEXTS[1], max_new_tokens=20)
    assert predictor(TEXTS[1], max_new_tokens=20) == [{"summary_text": longer[0]}]
    # A draw was asked for: beams, a mere default, yield.
    assert predictor(TEXTS[1], do_sample=True, seed=1)[0].keys() == {"summary_text"}


def test_recipes_of_the_task_are_followed(tmp_path: Path) -> None:
    """T5's config says which prefix, and which lengths, each of its tasks wants."""
    recipes = {
        "summarization": {"prefix": "sum: ", "max_length": 12, "min_length": 5, "num_beams": 2},
        "translation_en_to_fr": {"prefix": "en fr: ", "max_length": 6},
        "translation_en_to_de": {"prefix": "en de: ", "max_length": 7},
    }
    folder = encoder_decoder(tmp_path, "T5", task_specific_params=recipes)
    summary = generated(folder, "sum: bab", max_length=12, min_length=5, num_beams=2)
    assert Summarization.load(str(folder))("bab") == [{"summary_text": summary[0]}]
    translate = Translation.load(str(folder))
    german = generated(folder, "en de: bab", max_length=7)
    assert translate("bab", src_lang="en", tgt_lang="de") == [{"translation_text": german[0]}]
    assert TextToText.load(str(folder))("bab", max_length=7) == [
        {"generated_text": generated(folder, "bab", max_length=7)[0]}
    ]
    with pytest.raises(UserError, match="not translate from 'fr' to 'de'; it knows translation_en"):
        translate.preprocess("bab", {"src_lang": "fr", "tgt_lang": "de"})
    with pytest.raises(UserError, match="src_lang and tgt_lang go together"):
        translate.preprocess("bab", {"src_lang": "fr"})


def test_a_model_of_many_languages_gets_both(tmp_path: Path) -> None:
    import torch
    import transformers

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghinotu"]
    tokenizer = transformers.NllbTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]
    )
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2, max_position_embeddings=64, init_std=0.5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    translate = Translation.load(str(tmp_path))
    answers = set()
    for source, target in (("deu_Latn", "fra_Latn"), ("fra_Latn", "deu_Latn")):
        tokenizer.src_lang = source
        with torch.no_grad():
            tokens = model.generate(
                **tokenizer("in the", return_tensors="pt"), max_new_tokens=12,
                forced_bos_token_id=tokenizer.convert_tokens_to_ids(target),
            )  # fmt: skip
        expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
        languages = {"src_lang": source, "tgt_lang": target}
        assert translate("in the", max_new_tokens=12, **languages) == [
            {"translation_text": expected}
        ]
        answers.add(expected)
    assert len(answers) == 2
    with pytest.raises(UserError, match="does not know the language 'german'; it knows ace_Arab"):
        translate.preprocess("in", {"src_lang": "german", "tgt_lang": "fra_Latn"})
    with pytest.raises(UserError, match="between many languages; send src_lang and tgt_lang, as"):
        translate.preprocess("in")


def test_long_texts_are_refused_or_cut_and_counted(predictor: TextToText) -> None:
    with pytest.raises(UserError, match="the text has 90 tokens and only 64 fit"):
        predictor.preprocess("a" * 90)
    for truncation in (True, "only_first", "longest_first"):
        request = predictor.preprocess("a" * 90, {"truncation": truncation})
        assert request.truncated == [26]
        assert len(request.rows[0].inputs["input_ids"]) == 64


def test_an_answer_longer_than_the_model_has_positions_is_refused(tmp_path: Path) -> None:
    predictor = TextToText.load(str(encoder_decoder(tmp_path, "Bart")))
    assert predictor("a", max_new_tokens=64, min_length=60)
    with pytest.raises(UserError, match="max_new_tokens is 65; the model has 64 positions"):
        predictor("a", max_new_tokens=65)


@pytest.mark.parametrize("task", [Summarization, Translation, TextToText])
def test_bad_decoding_parameters_get_a_sentence(folder: Path, task: type[Predictor]) -> None:
    predictor = task.load(str(folder))
    for parameters, sentence in (
        ({"generate_parameters": {"beams": 2}}, "parameters.beams is not a parameter of"),
        ({"generate_parameters": {"num_beams": "2"}}, "parameters.num_beams is '2': input should"),
        ({"generate_parameters": {"custom_generate": "a/b"}}, "custom_generate is not a parameter"),
        ({"max_tokens": 2}, "did you mean max_new_tokens"),
    ):
        with pytest.raises(UserError, match=sentence):
            predictor.preprocess("a", parameters)
    json.dumps(predictor("a", max_new_tokens=3))


def test_a_text_without_a_token_is_refused(predictor: TextToText) -> None:
    """This tokenizer adds none of its own."""
    with pytest.raises(UserError, match="the text has no token that the model knows; send a text"):
        predictor("")
