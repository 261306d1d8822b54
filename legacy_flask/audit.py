"""Who did what to which thing: one row per change, written in the transaction of the change."""

from flask import g, has_request_context, request

from .models import AuditEntry


def audit(db, action: str, target: str = "", **detail) -> None:
    user = g.get("user")
    db.add(
        AuditEntry(
            user_id=user.id if user else None,
            username=user.username if user else "",
            action=action,
            target=target,
            detail=detail,
            ip=(request.remote_addr or "")[:45] if has_request_context() else "",
        )
    )
