"""What the SDK's tests share."""

import XenAPI


def connect(where, *credentials):
    """A session at a socket's path, or at an https address with a user and a password."""
    if where.startswith("/"):
        session = XenAPI.Session("http://" + where.replace("/", "_"), transport=XenAPI.UDSTransport())
        session.login_with_password("root", "", "1.0", "sdk-test")
    else:
        session = XenAPI.Session(where, ignore_ssl=True)
        session.login_with_password(*credentials, "1.0", "sdk-test")
    return session


def fails(code, call, *args):
    """The call's error parameters; it must fail with `code`."""
    try:
        result = call(*args)
    except XenAPI.Failure as failure:
        assert failure.details[0] == code, f"{code} expected: {failure.details}"
        return failure.details[1:]
    raise AssertionError(f"{code} expected, the call answered {result}")
