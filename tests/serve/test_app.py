"""What the endpoints answer is what the same models say offline."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from terrazzo.serve.app import OPERATIONS
from terrazzo.serve.served import MAX_GUESSES
from terrazzo.testing import tiny_texts

TEXTS = [*tiny_texts(5), "a bird", "🧭 the café near the river"]


def vectors(reply):
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], dtype=np.float32)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_embeddings_are_those_of_encode_at_length_1(server, offline, path):
    reply = server.post(path, model="moods", input=TEXTS, user="me", input_type="query")
    np.testing.assert_allclose(vectors(reply), offline["moods"].encode(TEXTS, normalize=True), atol=1e-5)
    assert reply.json()["model"] == "moods"
    one = server.post(path, model="moods", input=TEXTS[2])
    np.testing.assert_allclose(vectors(one)[0], vectors(reply)[2], atol=1e-5)
    cls = server.post(path, model="moods", input=TEXTS, pooling="cls")
    np.testing.assert_allclose(vectors(cls), offline["moods"].encode(TEXTS, "cls", normalize=True), atol=1e-5)


def test_base64_holds_the_same_numbers(server):
    floats = vectors(server.post("/v1/embeddings", model="moods", input=TEXTS))
    reply = server.post("/v1/embeddings", model="moods", input=TEXTS, encoding_format="base64")
    held = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in reply.json()["data"]]
    np.testing.assert_allclose(np.stack(held), floats, atol=1e-6)


def test_dimensions_cut_and_scale_back(server):
    whole = vectors(server.post("/v1/embeddings", model="moods", input=TEXTS))
    cut = vectors(server.post("/v1/embeddings", model="moods", input=TEXTS, dimensions=5))
    expected = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)
    refused = server.post("/v1/embeddings", model="moods", input="x", dimensions=33)
    assert refused.status_code == 422 and refused.json()["error"]["param"] == "dimensions"


def test_token_ids_stand_for_their_text(server):
    cut = server.post("/v1/tokenize", model="moods", input=TEXTS[:2]).json()["data"]
    ids = [item["ids"] for item in cut]
    from_text = vectors(server.post("/v1/embeddings", model="moods", input=TEXTS[:2]))
    np.testing.assert_allclose(vectors(server.post("/v1/embeddings", model="moods", input=ids)), from_text, atol=1e-6)
    alone = vectors(server.post("/v1/embeddings", model="moods", input=ids[1]))
    np.testing.assert_allclose(alone, from_text[1:], atol=1e-5)
    unknown = server.post("/v1/embeddings", model="moods", input=[5, 99_999])
    assert unknown.status_code == 422 and "99999" in unknown.json()["error"]["message"]


def test_usage_counts_what_was_read_and_what_was_cut(server, offline):
    long, short = "the cat purrs " * 40, "the cat"
    reply = server.post("/v1/embeddings", model="moods", input=[long, short]).json()
    tokens = [len(offline["moods"].tokenizer.encode(text).ids) for text in (long, short)]
    limit = offline["moods"].config.max_len
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == limit + tokens[1]
    assert (reply["usage"]["truncated_inputs"], reply["usage"]["truncated_tokens"]) == (1, tokens[0] - limit)
    refused = server.post("/v1/embeddings", model="moods", input=[short, long], truncate=False)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "input.1" and refused.json()["error"]["code"] == "too_long"


def test_classes_are_those_of_predict(server, offline):
    reply = server.post("/v1/classify", model="moods", input=TEXTS).json()
    for item, result in zip(reply["data"], offline["moods"].predict(TEXTS), strict=True):
        assert item["label"] == result.label and item["error"] is None
        assert {
            score["label"]: pytest.approx(score["score"], abs=1e-5) for score in item["scores"]
        } == result.probabilities
        assert item["score"] == item["scores"][0]["score"]
    best = server.post("/v1/classify", model="moods", input=TEXTS[0], top_k=1).json()["data"][0]
    assert best["scores"] == [{"label": best["label"], "score": best["score"]}]


def test_raw_scores_are_what_the_probabilities_are_made_of(server):
    for model, inverse in (
        ("moods", lambda z: np.exp(z) / np.exp(z).sum()),
        ("topics", lambda z: 1 / (1 + np.exp(-z))),
    ):
        plain = server.post("/v1/classify", model=model, input="a bird").json()["data"][0]["scores"]
        raw = server.post("/v1/classify", model=model, input="a bird", raw_scores=True).json()["data"][0]["scores"]
        scores = np.array([score["score"] for score in raw])
        np.testing.assert_allclose(inverse(scores), [score["score"] for score in plain], atol=1e-6)


def test_several_classes_pairs_values_and_problems(server, offline):
    several = server.post("/v1/classify", model="topics", input=TEXTS).json()["data"]
    assert [item["labels"] for item in several] == [list(r.labels) for r in offline["topics"].predict(TEXTS)]
    rows = [["a bird", "sings"], {"a": "the cat", "b": "purrs"}]
    pairs = server.post("/v1/classify", model="pairs", input=rows).json()["data"]
    expected = offline["pairs"].predict([("a bird", "sings"), ("the cat", "purrs")])
    assert [item["score"] for item in pairs] == pytest.approx([result.score for result in expected], abs=1e-5)
    value = server.post("/v1/classify", model="values", input="a bird").json()["data"][0]
    assert value["score"] == pytest.approx(offline["values"].predict(["a bird"])[0].score, abs=1e-5)
    assert value["label"] is None and value["scores"] is None
    given = [{"text": "a bird", "problem": "mood"}, "a bird"]
    desk = server.post("/v1/classify", model="desk", input=given, problem="size").json()["data"]
    assert {score["label"] for score in desk[0]["scores"]} == {"calm", "wild"}
    assert {score["label"] for score in desk[1]["scores"]} == {"s", "l"}


def test_a_row_that_cannot_be_answered_stops_no_other(server, offline):
    reply = server.post("/v1/classify", model="moods", input=["a bird", " ", "the cat"])
    first, bad, last = reply.json()["data"]
    assert reply.status_code == 200 and bad["error"]["param"] == "input.1" and "blank" in bad["error"]["message"]
    expected = offline["moods"].predict(["a bird", "the cat"])
    assert [first["label"], last["label"]] == [result.label for result in expected]
    assert set(bad) == set(first) and not any(bad[key] for key in ("label", "score", "labels", "scores", "truncated"))
    alone = server.post("/v1/classify", model="moods", input=" ")
    assert alone.status_code == 422 and alone.json()["error"]["param"] == "input"


def test_rows_of_another_number_of_texts_are_told_so(server):
    rows = [("It rains.", "The street is wet."), {"a": "It rains.", "b": "It is wet."}]
    said = [item["error"]["message"] for item in server.post("/v1/classify", model="moods", input=rows).json()["data"]]
    assert said == ["a pair, but 'moods' reads single texts"] * 2
    refused = server.post("/predict", model="pairs", inputs="It rains.").json()["error"]["message"]
    assert refused == "one text, but 'pairs' reads pairs"


def test_predict_answers_as_text_embeddings_inference(server):
    one = server.post("/predict", model="moods", inputs="a bird").json()
    assert [set(item) for item in one] == [{"label", "score"}] * 3
    several = server.post("/predict", model="moods", inputs=[["a bird"], ["the cat"], ["a bird"]]).json()
    assert len(several) == 3 and several[0][0] == pytest.approx(one[0]) or several[0][0]["label"] == one[0]["label"]
    pair = server.post("/predict", model="pairs", inputs=["a bird", "sings"]).json()
    assert {item["label"] for item in pair} == {"no", "yes"}
    assert server.post("/predict", model="moods", inputs=["a bird", "sings"]).status_code == 422


def test_tags_are_places_in_the_text(server, offline):
    text = "🧭 the cat 𝔞 in the garden"
    item = server.post("/v1/tag", model="tags", input=[text]).json()["data"][0]
    expected = offline["tags"].predict([text])[0].spans
    assert expected and item["tags"] is None
    for span, same in zip(item["spans"], expected, strict=True):
        assert (span["start"], span["end"], span["label"]) == (same.start, same.end, same.label)
        assert text[span["start"] : span["end"]] == span["text"] and span["score"] == pytest.approx(
            same.score, abs=1e-5
        )
    utf16 = server.post("/v1/tag", model="tags", input=text, offsets="utf16").json()["data"][0]
    units = text.encode("utf-16-le")
    for span in utf16["spans"]:
        assert units[2 * span["start"] : 2 * span["end"]].decode("utf-16-le") == span["text"]
    words = server.post("/v1/tag", model="tags", input={"tokens": ["the", "cat", "purrs"]}).json()["data"][0]
    assert words["tags"] == list(offline["tags"].predict([{"tokens": ["the", "cat", "purrs"]}])[0].tags)


def test_answers_are_places_in_the_context(server, offline):
    rows = [{"question": "who?", "context": "🧭 the cat purrs at night"}, {"question": " ", "context": "x"}]
    first, bad = server.post("/v1/qa", model="answers", input=rows).json()["data"]
    result = offline["answers"].predict(rows[:1])[0]
    assert (first["answer"] or "") == result.label and first["score"] == pytest.approx(result.score, abs=1e-5)
    if first["answer"] is not None:
        assert rows[0]["context"][first["start"] : first["end"]] == first["answer"]
    assert bad["error"]["param"] == "input.1"
    assert server.post("/v1/qa", model="answers", **rows[0]).json()["data"][0] == pytest.approx(first, abs=1e-5)
    assert server.post("/v1/qa", model="answers", **rows[1]).status_code == 422
    assert server.post("/v1/qa", model="answers", question="who?").status_code == 422


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_best_first(server, offline, path):
    documents = ["the dog barks", {"text": "a bird sings", "id": 7}, "an engine hums", "the cat purrs"]
    texts = ["the dog barks", "a bird sings", "an engine hums", "the cat purrs"]
    found = server.post(path, model="pairs", query="a bird", documents=documents, return_documents=True).json()
    scores = [r.probabilities["yes"] for r in offline["pairs"].predict([("a bird", text) for text in texts])]
    order = np.argsort(scores)[::-1].tolist()
    assert [item["index"] for item in found["results"]] == order
    assert [item["relevance_score"] for item in found["results"]] == pytest.approx(sorted(scores)[::-1], abs=1e-5)
    (own,) = [item for item in found["results"] if item["index"] == 1]
    assert own["document"] == {"text": "a bird sings", "id": 7}
    best = server.post(path, model="pairs", query="a bird", documents=documents, top_n=2).json()["results"]
    assert [item["index"] for item in best] == order[:2] and "document" not in best[0]


def test_masks_are_filled_as_offline(server, offline):
    (text,) = ["the [MASK] purrs in the [MASK]"]
    masks = server.post("/v1/fill_mask", model="masks", input=[text, text], top_k=3).json()["data"][1]["masks"]
    for guesses, expected in zip(masks, offline["masks"].fill_mask(text, top_k=3), strict=True):
        assert [guess["id"] for guess in guesses] == [guess.id for guess in expected]
        assert [guess["token"] for guess in guesses] == [guess.token for guess in expected]
        assert [g["probability"] for g in guesses] == pytest.approx([g.probability for g in expected], abs=1e-5)
    refused = server.post("/v1/fill_mask", model="masks", input="the cat")
    assert refused.status_code == 422 and "[MASK]" in refused.json()["error"]["message"]


def test_tokens_have_their_places(server, offline):
    text = "the 🧭 cat"
    item = server.post("/v1/tokenize", model="moods", input=text).json()["data"][0]
    expected = offline["moods"].tokenizer.encode(text)
    assert (item["ids"], item["tokens"]) == (expected.ids, expected.tokens)
    assert [tuple(place) for place in item["offsets"]] == expected.offsets
    bare = server.post("/v1/tokenize", model="moods", input=text, add_special_tokens=False).json()["data"][0]
    assert bare["ids"] == expected.ids[1:-1]
    utf16 = server.post("/v1/tokenize", model="moods", input=text, offsets="utf16").json()["data"][0]["offsets"]
    assert utf16[-2] == [7, 10] and item["offsets"][-2] == [6, 9]


def test_the_only_model_with_an_ability_needs_no_name(server):
    assert server.post("/v1/tag", input="the cat").json()["model"] == "tags"
    several = server.post("/v1/embeddings", input="the cat")
    assert several.status_code == 422 and several.json()["error"]["param"] == "model"


def test_info_models_and_metrics_tell_what_is_served(server, folders):
    info = server.get("/info").json()
    described = {model["name"]: model for model in info["models"]}
    assert list(described) == list(folders) and info["ready"] is True
    assert info["limits"]["max_guesses"] == MAX_GUESSES
    assert described["moods"]["labels"] == ["calm", "wild", "odd"] and described["pairs"]["pair"] is True
    assert described["desk"]["problems"] == ["mood", "size"] and described["masks"]["mask"] == "[MASK]"
    assert [described[name]["abilities"][-1] for name in ("values", "answers", "masks")] == [
        "regression",
        "qa",
        "fill_mask",
    ]
    listed = server.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == list(folders)
    assert server.get("/v1/models/tags").json() == listed[list(folders).index("tags")]
    server.post("/v1/embeddings", model="values", input=["the cat", "the cat purrs " * 40])
    text = server.get("/metrics").text
    assert "_created" not in text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    assert float(lines['terrazzo_requests_total{route="/v1/embeddings",status="200"}']) >= 1
    assert float(lines['terrazzo_inputs_total{model="values"}']) >= 2
    assert float(lines['terrazzo_truncated_inputs_total{model="values"}']) >= 1
    assert float(lines['terrazzo_batch_documents_count{encoder="values"}']) >= 1
    assert float(lines['terrazzo_queue_tokens{encoder="values"}']) == 0


def test_the_document_describes_every_endpoint(server):
    document = server.get("/openapi.json").json()
    assert set(document["paths"]) == {operation.path for operation in OPERATIONS}
    embeddings = document["paths"]["/v1/embeddings"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "429", "503"} <= set(embeddings["responses"])
    schemas = document["components"]["schemas"]
    assert "model" in schemas["Embeddings"]["required"] and "model" not in schemas["Tag"]["required"]
    names = document["components"]["schemas"]["Tag"]["properties"]["model"]["anyOf"]
    assert names == [{"type": "string", "enum": ["tags"]}, {"type": "null"}]
    assert server.get("/").headers["content-security-policy"].startswith("default-src 'none'")
