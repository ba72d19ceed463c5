"""The OpenAPI description of a server, /v1/openapi.json."""

from __future__ import annotations

from typing import Any

from rltrain.envs.spec import EnvSpec, Leaf, ObsSpec


def openapi(spec: EnvSpec) -> dict[str, Any]:
    """The document for policies of this spec."""
    if spec.groups:
        members = {part.names[0]: _obs(part.group.obs) for part in spec.layout.agents}
        obs: dict[str, Any] = {"type": "object", "properties": members, "additionalProperties": False}
        masks = {name: _list("boolean", None) for name in spec.agents}
        mask: dict[str, Any] = {"type": "object", "properties": masks}
    else:
        obs, mask = _obs(spec.obs), _list("boolean", spec.action.mask_size)
    boolean, text = {"type": "boolean"}, {"type": "string"}
    core = {"type": "array", "items": _list("number", None)}

    def each(kind: str) -> dict[str, Any]:
        members = {name: {"type": kind} for name in spec.agents}
        return {"type": "object", "properties": members, "additionalProperties": False}

    request = {
        "obs": obs,
        "batch": {"type": "array", "items": obs},
        "action_mask": mask,
        "action_masks": {"type": "array", "items": mask},
        "policy": text,
        "sample": boolean,
        "seed": {"type": "integer", "minimum": 0},
        "session": text,
        "episode": text,
        "reward": each("number") if spec.groups else {"type": "number"},
        "terminated": {"anyOf": [boolean, each("boolean")]} if spec.groups else boolean,
        "truncated": {"anyOf": [boolean, each("boolean")]} if spec.groups else boolean,
        "first": boolean,
        "core": core,
        "deadline_ms": {"type": "number", "exclusiveMinimum": 0},
        "details": boolean,
        "id": {},
    }
    if spec.turns:
        request["turn"] = {"type": "string", "enum": list(spec.agents)}
    if spec.state_shape is not None:
        request["state"] = _leaf(Leaf("box", spec.state_shape, "float32"))
    answer = {
        "action": {},
        "actions": {"type": "array"},
        "policy": text,
        "step": {"type": "integer"},
        "seed": {"type": "integer"},
        "core": core,
        "log_prob": {},
        "scores": {},
        "recorded": boolean,
        "id": {},
    }
    fault = {"type": "object", "properties": dict.fromkeys(("message", "field", "expected", "received"), text)}
    error = {"type": "object", "properties": {"error": fault}}
    codes = {
        "400": "a field is wrong",
        "401": "no token",
        "403": "a page of another site asks, or the server is called by a name that is not its own",
        "405": "the method is not one of this path",
        "408": "the body came too slowly",
        "409": "the session is not known",
        "413": "the body is too large",
        "500": "the policy failed",
        "503": "the queue is full; try again after Retry-After seconds",
        "504": "the deadline passed",
    }
    refused = {code: {"description": text, **_json(error)} for code, text in codes.items()}
    body = {"type": "object", "properties": request, "additionalProperties": False}
    act = {
        "summary": "Actions for one observation (obs) or several (batch)",
        "requestBody": {"required": True, **_json(body)},
        "responses": {
            "200": {"description": "the actions", **_json({"type": "object", "properties": answer})},
            **refused,
        },
    }
    reload = {
        "summary": "Load the newest checkpoint",
        "requestBody": _json({"type": "object", "properties": {"policy": text}}),
        "responses": {
            "200": {"description": "the steps of the policies"},
            "409": {"description": "the new version cannot be served; the old one stays", **_json(error)},
        },
    }
    end_session = {
        "summary": "End a session",
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": text}],
        "responses": {
            "200": {"description": "it has ended"},
            "404": {"description": "there is no such session", **_json(error)},
        },
    }
    gets = {
        "/v1/spec": "The policies, and what they observe and do",
        "/healthz": "The process answers",
        "/readyz": "The policies are loaded",
        "/metrics": "Metrics for Prometheus",
        "/v1/stream": "A WebSocket whose messages are requests as for /v1/act, and are answered in order",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"rlserve: {spec.id}", "version": "1"},
        "paths": {
            "/v1/act": {"post": act},
            "/v1/reload": {"post": reload},
            "/v1/sessions/{id}": {"delete": end_session},
            **{
                path: {"get": {"summary": what, "responses": {"200": {"description": "ok"}}}}
                for path, what in gets.items()
            },
        },
        "security": [{"token": []}, {}],  # the token is needed where the server was started with one
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _list(kind: str, size: int | None) -> dict[str, Any]:
    bounds = {} if size is None else {"minItems": size, "maxItems": size}
    return {"type": "array", "items": {"type": kind}, **bounds}


def _obs(obs: ObsSpec) -> dict[str, Any]:
    if isinstance(obs, Leaf):
        return _leaf(obs)
    if isinstance(obs, dict):
        parts = {key: _obs(child) for key, child in obs.items()}
        return {"type": "object", "properties": parts, "required": sorted(obs), "additionalProperties": False}
    items = [_obs(child) for child in obs]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _leaf(leaf: Leaf) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number" if leaf.kind in ("box", "multi_binary") else "integer"}
    if leaf.kind == "image":
        schema |= {"minimum": 0, "maximum": leaf.high}
    elif leaf.kind == "discrete":
        start = leaf.start[0] if leaf.start else 0
        schema |= {"minimum": start, "maximum": start + leaf.nvec[0] - 1}
    for size in reversed(leaf.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema
