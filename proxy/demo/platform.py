"""The simulator's platform HTTP: logging in and out, who one is, a microservice's subscriptions, tokens for devices.

Shapes are those of the platform's OpenAPI description and of what its JavaScript, Go and Python clients send and read:
a login is a form of `grant_type` PASSWORD, `username` (with or without the tenant before a slash), `password` and
`tfa_code`, which the Python client calls `tfa_token` and the JavaScript client fills with the word "undefined".
`authorization` is HttpOnly, neither cookie names a domain (it is omitted since release 10.20.472), both are Secure
where the platform is; that they may be sent to any path and name no SameSite is inferred. A login with a code of an
identity provider has `grant_type` AUTHORIZATION_CODE and `code`, in the form, or in older documents in the query and in
lower case; see `single_sign_on` for what leads there.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
from aiohttp import web

from proxy.demo.accounts import Unauthorized, User, same
from proxy.demo.admission import Admitted
from proxy.demo.devices import DEVICE_TOKEN_PATH, chain_of, common_name_of, token_answer
from proxy.demo.single_sign_on import ProviderUnavailable, SignedOn, SingleSignOn
from proxy.demo.tenant import Tenant
from proxy.demo.tokens import Token


Answer = Callable[[Tenant, web.Request], Awaitable[web.Response]]

_VENDOR = "application/vnd.com.nsn.cumulocity."
_LOGIN_PATHS = ("/tenant/oauth", "/tenant/oauth/token")
_ROLES = ("ROLE_USER_MANAGEMENT_OWN_READ", "ROLE_INVENTORY_READ", "ROLE_MEASUREMENT_READ")  # enough to look around
_SCHEMES_THAT_OPEN_NO_WINDOW = {"true": "XBasic"}  # UseXBasic keeps a browser from opening its own login window


def routes(tenant: Tenant) -> list[web.RouteDef]:
    """Everything that is served beside real-time notifications."""
    return _routes(
        tenant,
        ("GET", "/tenant/oauth", _sign_on),
        ("POST", "/tenant/oauth", _log_in_for_cookies),
        ("POST", "/tenant/oauth/token", _log_in_for_body),
        ("GET", "/tenant/loginOptions", _tell_login_options),
        ("POST", "/user/logout", _log_out),
        ("GET", "/user/currentUser", _tell_current_user),
        ("GET", "/tenant/currentTenant", _tell_current_tenant),
        ("GET", "/application/currentApplication/subscriptions", _tell_subscriptions),
    )


def device_routes(tenant: Tenant) -> list[web.RouteDef]:
    """What is served where a certificate is demanded: tokens for devices, and nothing else."""
    return _routes(tenant, ("POST", DEVICE_TOKEN_PATH, _give_device_token))


def refused(request: web.Request, refusal: Unauthorized) -> web.Response:
    """The platform's 401."""
    scheme = _SCHEMES_THAT_OPEN_NO_WINDOW.get(request.headers.get("UseXBasic", "").lower(), "Basic")
    body = {"error": refusal.error, "message": refusal.message, "info": "https://cumulocity.com/docs/"}
    return web.Response(
        status=401,
        headers={"WWW-Authenticate": f'{scheme} realm="simulated tenant"'},
        body=msgspec.json.encode(body) if "Accept" in request.headers else b"",
        content_type="application/json",
    )


def renew(tenant: Tenant, admitted: Admitted, response: web.StreamResponse, *, secure: bool) -> None:
    """Set a new pair of cookies if the token that the request was made with is due for renewal."""
    renewed = None if admitted.token is None else tenant.logins.renew(admitted.token)
    if renewed is not None:
        _set_pair(tenant, renewed, response, secure=secure)


def _routes(tenant: Tenant, *served: tuple[str, str, Answer]) -> list[web.RouteDef]:
    return [web.route(method, path, partial(_serve, tenant, answer)) for method, path, answer in served]


async def _serve(tenant: Tenant, answer: Answer, request: web.Request) -> web.Response:
    tenant.record(request, "call")
    if request.path in _LOGIN_PATHS and (request.method == "POST" or "code" in request.query):
        tenant.logins.ask(request.headers.get("User-Agent"))
    if request.path == DEVICE_TOKEN_PATH:
        tenant.devices.ask(common_name_of(request), chain_of(request))
    tenant.note_change()
    fault = tenant.faults.get(request.path)
    if fault is not None and not fault.afterwards and (failed := await fault.strike()) is not None:
        return failed
    try:
        response = await answer(tenant, request)
    except Unauthorized as refusal:
        response = refused(request, refusal)
    tenant.note_change()
    if tenant.closes_sockets:
        await tenant.close_ended_sockets()
    if fault is not None and fault.afterwards and (failed := await fault.strike()) is not None:
        return failed
    return response


async def _log_in(tenant: Tenant, request: web.Request, *, in_body: bool) -> Token:
    fields = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
    if (request.query.get("grant_type") or fields.get("grant_type", "")).upper() == "AUTHORIZATION_CODE":
        return (await _signed_on(tenant, request, dict(request.query) | fields, in_body=in_body))[1]
    if fields.get("grant_type") != "PASSWORD":
        raise web.HTTPBadRequest
    named, _, name = fields.get("username", "").rpartition("/")
    code = fields.get("tfa_code", fields.get("tfa_token"))
    return tenant.logins.log_in(
        tenant.accounts,
        user=User(named or request.query.get("tenant_id") or tenant.accounts.tenant, name),
        password=fields.get("password", ""),
        code=None if code in {"", "undefined"} else code,
        user_agent=request.headers.get("User-Agent"),
        in_body=in_body,
    )


async def _signed_on(
    tenant: Tenant, request: web.Request, fields: Mapping[str, str], *, in_body: bool = False
) -> tuple[SignedOn, Token]:
    """The session of somebody who brings a code of the identity provider."""
    settings = _sso_of(tenant, request)
    try:
        signed_on = await tenant.sign_ons.finish(settings, code=fields.get("code", ""), state=fields.get("state"))
    except ProviderUnavailable as unavailable:
        raise web.HTTPBadGateway from unavailable
    user = User(tenant.accounts.tenant, signed_on.user)
    return signed_on, tenant.logins.begin(user, user_agent=request.headers.get("User-Agent"), in_body=in_body)


def _sso_of(tenant: Tenant, request: web.Request) -> SingleSignOn:
    """How people of the tenant that a request names sign on. Raises Unauthorized for a tenant without."""
    if tenant.sso is None:
        raise web.HTTPBadRequest
    if request.query.get("tenant_id", tenant.accounts.tenant) != tenant.accounts.tenant:
        raise Unauthorized
    return tenant.sso


async def _sign_on(tenant: Tenant, request: web.Request) -> web.Response:
    """Send a browser to the identity provider, or take it back from there."""
    settings, query = _sso_of(tenant, request), request.query
    if "error" in query:
        raise Unauthorized
    if "code" in query:
        signed_on, token = await _signed_on(tenant, request, query)
        response = _told({}, "application/json") if settings.flow_controlled_by_ui else _sent_to(signed_on.returns_to)
        _set_pair(tenant, token, response, secure=request.secure)
        return response
    if query.get("response_type") != "code":
        raise web.HTTPBadRequest
    location = tenant.sign_ons.begin(settings, returns_to=query.get("originUri"))
    return _told({"redirectTo": location}, "application/json") if settings.flow_controlled_by_ui else _sent_to(location)


def _sent_to(location: str) -> web.Response:
    return web.Response(status=302, headers={"Location": location, "Cache-Control": "no-store"})


async def _log_in_for_cookies(tenant: Tenant, request: web.Request) -> web.Response:
    token = await _log_in(tenant, request, in_body=False)
    response = web.Response()
    _set_pair(tenant, token, response, secure=request.secure)
    return response


async def _log_in_for_body(tenant: Tenant, request: web.Request) -> web.Response:
    token = await _log_in(tenant, request, in_body=True)
    return _told({"access_token": token.value}, "application/json")


async def _tell_login_options(tenant: Tenant, request: web.Request) -> web.Response:
    here, rules = f"{request.scheme}://{request.host}/tenant", tenant.logins.rules
    shared = {"userManagementSource": "INTERNAL", "visibleOnLoginPage": True}
    internal = shared | {
        "self": f"{here}/loginOptions/OAUTH2_INTERNAL",
        "id": "OAUTH2_INTERNAL",
        "type": "OAUTH2_INTERNAL",
        "grantType": "PASSWORD",
        "enforceStrength": False,
        "tfaStrategy": "TOTP",
        "initRequest": f"{here}/oauth?tenant_id={tenant.accounts.tenant}",
    }
    if rules.renewal_seconds is not None:
        internal["sessionConfiguration"] = {
            "absoluteTimeoutMillis": round(rules.absolute_seconds * 1000),
            "renewalTimeoutMillis": round(rules.renewal_seconds * 1000),
            "maximumNumberOfParallelSessions": rules.parallel,
            "userAgentValidationRequired": rules.validates_user_agent,
        }
    basic = shared | {"self": f"{here}/loginOptions/BASIC", "id": "BASIC", "type": "BASIC"}
    options = [internal, basic, *_sso_options(tenant, here)]
    return _told({"self": f"{here}/loginOptions/", "loginOptions": options}, "loginoptioncollection+json")


def _sso_options(tenant: Tenant, here: str) -> list[dict[str, object]]:
    if tenant.sso is None:
        return []
    option = {
        "self": f"{here}/loginOptions/OAUTH2",
        "id": "OAUTH2",
        "type": "OAUTH2",
        "grantType": "AUTHORIZATION_CODE",
        "userManagementSource": "REMOTE",
        "providerName": tenant.sso.provider_name,
        "buttonName": tenant.sso.button_name,
        "visibleOnLoginPage": tenant.sso.is_visible,
        "initRequest": f"{here}/oauth?tenant_id={tenant.accounts.tenant}&response_type=code",
    }
    return [option | ({"flowControlledByUI": True} if tenant.sso.flow_controlled_by_ui else {})]


async def _log_out(tenant: Tenant, request: web.Request) -> web.Response:
    admitted = tenant.admit(request)
    if admitted.token is not None:
        tenant.logins.log_out(admitted.token)
        tenant.devices.log_out(admitted.token)
    response = web.Response()
    for name in ("authorization", "XSRF-TOKEN"):
        response.del_cookie(name)
    return response


async def _tell_current_user(tenant: Tenant, request: web.Request) -> web.Response:
    here = f"{request.scheme}://{request.host}/user"

    def told(user: User) -> Mapping[str, object]:
        roles = [{"self": f"{here}/roles/{role}", "id": role, "name": role} for role in _ROLES]
        return {
            "self": f"{here}/currentUser",
            "id": user.name,
            "userName": user.name,
            "shouldResetPassword": False,
            "effectiveRoles": roles,
        }

    return _tell(tenant, request, told, "currentuser+json")


async def _tell_current_tenant(tenant: Tenant, request: web.Request) -> web.Response:
    def told(user: User) -> Mapping[str, object]:
        return {
            "self": f"{request.scheme}://{request.host}/tenant/currentTenant",
            "name": user.tenant,
            "domainName": request.host,
            "allowCreateTenants": False,
            "applications": {"references": []},
            "customProperties": {},
        }

    return _tell(tenant, request, told, "currenttenant+json")


async def _tell_subscriptions(tenant: Tenant, request: web.Request) -> web.Response:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic" or not same(value, tenant.subscriptions.basic):
        raise Unauthorized
    here = f"{request.scheme}://{request.host}{request.path}"
    return _told({"self": here, "users": tenant.subscriptions.listed()}, "applicationusercollection+json")


async def _give_device_token(tenant: Tenant, request: web.Request) -> web.Response:
    return token_answer(tenant.devices.admit(common_name_of(request), chain_of(request)))


def _tell(
    tenant: Tenant, request: web.Request, told: Callable[[User], Mapping[str, object]], media_type: str
) -> web.Response:
    """Tell who is admitted about themselves, and renew their token if it is time to."""
    admitted = tenant.admit(request)
    response = _told(told(admitted.user), media_type)
    renew(tenant, admitted, response, secure=request.secure)
    return response


def _told(told: object, media_type: str) -> web.Response:
    media_type = media_type if "/" in media_type else _VENDOR + media_type
    return web.Response(body=msgspec.json.encode(told), content_type=media_type)


def _set_pair(tenant: Tenant, token: Token, response: web.StreamResponse, *, secure: bool) -> None:
    kept = tenant.logins.rules.cookie_seconds
    max_age = round(kept) if kept >= 0 else None
    response.set_cookie("authorization", token.value, max_age=max_age, httponly=True, secure=secure)
    response.set_cookie("XSRF-TOKEN", token.xsrf_token, max_age=max_age, secure=secure)
