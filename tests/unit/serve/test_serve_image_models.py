"""An image model is looked at where it is named: by projects, by the first start and by the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyloop import doctor, service
from comfyloop.errors import ModelError
from comfyloop.loop.plan import image_spec
from comfyloop.records import Project
from comfyloop.settings import Settings
from comfyloop.store import open_store, projects
from tests import image_models
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture
def inpainting(tiny_sd15: Path, tmp_path: Path) -> Path:
    tensors = {name: t for name, t in load_file(tiny_sd15).items() if "token_embedding" not in name}
    place = tmp_path / "inpainting.safetensors"
    save_file({**tensors, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, place)
    return place


@pytest.mark.parametrize(
    "named",
    ["no/such.safetensors", "~nobody-here/x", "x" * 900, "a\0b", "starter", "org/model", ".", "/dev/zero"],
)
def test_an_image_model_that_is_none_is_refused_and_the_old_one_kept(
    named: str, shared_gateway: Gateway
) -> None:
    http = shared_gateway.http
    made = http.post("/v1/projects", json={"name": "none", "image_model": named})
    changed = http.patch("/v1/projects/acme", json={"image_model": named})
    for response in (made, changed):
        assert response.status_code == 400, response.text
        assert named == "a\0b" or "mage model" in response.text or "diffusers folder" in response.text
    assert http.get("/v1/projects/none").status_code == 404
    assert http.get("/v1/projects/acme").json()["image_model"] == ""


def test_an_image_model_that_cannot_be_trained_on_is_refused_by_name(
    inpainting: Path, tiny_sd15: Path, gateway: Gateway
) -> None:
    for place in (inpainting, inpainting.with_suffix(".ckpt")):
        place.touch()
        refused = gateway.http.patch("/v1/projects/acme", json={"image_model": str(place)})
        assert refused.status_code == 400 and (
            "inpainting model" in refused.text or "CheckpointSave" in refused.text
        )
    for good in (str(tiny_sd15), "starter-image", ""):
        changed = gateway.http.patch("/v1/projects/acme", json={"image_model": good})
        assert changed.status_code == 200 and changed.json()["image_model"] == good


def test_new_projects_have_the_set_image_model(settings: Settings, tiny_sd15: Path) -> None:
    told = settings.model_copy(update={"image_model": str(tiny_sd15)})
    with running_gateway(told, instant()) as gateway:
        post = gateway.http.post
        assert post("/v1/projects", json={"name": "set"}).json()["image_model"] == str(tiny_sd15)
        assert post("/v1/projects", json={"name": "text", "image_model": ""}).json()["image_model"] == ""
        other = post("/v1/projects", json={"name": "other", "image_model": "starter-image"})
        assert other.json()["image_model"] == "starter-image"


def test_the_first_start_looks_at_the_set_image_model(settings: Settings, inpainting: Path) -> None:
    told = settings.model_copy(update={"image_model": str(inpainting)})
    with pytest.raises(ModelError, match="inpainting"), service.running(told):
        pass
    with open_store(told) as store, store.read() as conn:
        assert projects.list_all(conn) == []


def test_the_loop_trains_with_the_set_vae_and_prediction(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(name="acme", base_model="starter", image_model="m.safetensors")
    plain = image_spec(settings, project, tmp_path / "train.jsonl", str)
    assert plain.vae is None and plain.prediction_type == "auto"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYLOOP_IMAGE_VAE", "vae.safetensors")
    monkeypatch.setenv("COMFYLOOP_IMAGE_PREDICTION_TYPE", "v_prediction")
    spec = image_spec(Settings(home=tmp_path), project, tmp_path / "train.jsonl", str)
    assert spec.vae == str(tmp_path / "vae.safetensors") and spec.vae in spec.weights()
    assert spec.prediction_type == "v_prediction"


def test_a_project_says_of_its_own_image_model_what_the_settings_say_of_all(
    settings: Settings, tiny_sd15: Path, tmp_path: Path
) -> None:
    """One brand draws with a velocity model beside another's: each is trained, and judged, as it is."""
    bare = image_models.make_tiny_sd15(tmp_path / "bare.safetensors", vae=False)
    image_models.tiny_kl(0.18215).save_pretrained(tmp_path / "vae")
    own = {"image_vae": str(tmp_path / "vae"), "image_prediction_type": "v_prediction"}
    with running_gateway(settings, instant()) as gateway:
        post, patch = gateway.http.post, gateway.http.patch
        refused = post("/v1/projects", json={"name": "bare", "image_model": str(bare)})
        assert refused.status_code == 400 and "has no VAE" in refused.text
        made = post("/v1/projects", json={"name": "bare", "image_model": str(bare), **own})
        assert made.status_code == 201 and own.items() <= made.json().items()
        gone = patch("/v1/projects/bare", json={"image_vae": str(tmp_path / "gone")})
        assert gone.status_code == 400 and "There is no VAE" in gone.text
        other = post("/v1/projects", json={"name": "plain", "image_model": str(tiny_sd15)}).json()
        changed = patch("/v1/projects/plain", json={"image_prediction_type": "sample"}).json()
        assert other["image_prediction_type"] == "auto" and changed["image_prediction_type"] == "sample"
    said = settings.model_copy(update={"image_prediction_type": "epsilon"})
    found = {
        name: image_spec(said, Project.model_validate(told), tmp_path / "train.jsonl", str)
        for name, told in (("bare", made.json()), ("plain", changed), ("other", other))
    }
    assert found["bare"].vae == str(tmp_path / "vae") and found["bare"].prediction_type == "v_prediction"
    assert found["plain"].vae is None and found["plain"].prediction_type == "sample"
    assert found["other"].prediction_type == "epsilon"
    sentence = examined(settings).sentence
    assert "(bare): Stable Diffusion 1.5 in one file, which predicts the velocity" in sentence


def examined(settings: Settings) -> doctor.MachineCheck:
    return doctor._image_model(settings)


def test_the_doctor_says_what_the_image_models_are(
    settings: Settings, tiny_sd15: Path, tiny_sdxl: Path, inpainting: Path, tmp_path: Path
) -> None:
    assert doctor._image_model in doctor.CHECKS
    none = examined(settings)
    assert none.ok and "COMFYLOOP_IMAGE_MODEL" in none.sentence
    told = settings.model_copy(update={"image_model": str(tiny_sd15)})
    assert examined(told).ok and "(new projects): Stable Diffusion 1.5 in one file" in examined(told).sentence
    with open_store(settings) as store, store.begin() as conn:
        projects.add(conn, Project(name="acme", base_model="starter", image_model=str(tiny_sdxl)))
        projects.add(conn, Project(name="pets", base_model="starter", image_model=str(tiny_sd15)))
    found = examined(told)
    assert found.ok and "(new projects, pets)" in found.sentence and "(acme): SDXL" in found.sentence
    gone = examined(settings.model_copy(update={"image_model": str(tmp_path / "gone.safetensors")}))
    assert not gone.ok and "There is no image model" in gone.sentence
    bad = examined(settings.model_copy(update={"image_model": str(inpainting)}))
    assert not bad.ok and "inpainting" in bad.sentence
    vae = examined(told.model_copy(update={"image_vae": str(tmp_path / "vae.pt")}))
    assert not vae.ok and "There is no VAE" in vae.sentence
