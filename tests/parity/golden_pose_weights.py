"""PyTorch weights of the keypoint decoder of a golden bundle under our dotted names."""

from golden_weights import Weights, box, detr, linear, prefixed


def keypoint(w: Weights, config: dict) -> Weights:
    """Parameters of `KeypointUnit` from a state dict with the prefix `visual_decoder.pose.`."""
    pose = "visual_decoder.pose."
    plain = {f"visual_decoder.{k.removeprefix(pose)}": v for k, v in w.items() if pose in k}
    as_box = {k.replace(".box_decoder.", ".box."): v for k, v in plain.items()}
    found = prefixed("box", box(as_box, config["box_config"]["decoder_layers"]))
    at = "visual_decoder.kpt_decoder"
    found |= linear(plain, f"{at}.in_proj_visual_feats", "memory")
    found |= linear(plain, f"{at}.in_proj_queries", "query")
    found |= linear(plain, f"{at}.kpt_classifier", "visibility_head")
    found["part"] = plain[f"{at}.kpt_embedding.weight"]
    found["query_position"] = plain[f"{at}.query_position_embeddings.weight"]
    layers = config["keypoint_config"]["decoder_layers"]
    found |= detr(plain, f"{at}.decoder", layers, "decoder")
    for i in range(3):
        found |= linear(plain, f"{at}.box_predictor.layers.{i}", f"box_head.layers.{i}")
        found |= linear(plain, f"{at}.kpt_predictor.layers.{i}", f"point_head.layers.{i}")
    return found
