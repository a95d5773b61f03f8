"""A project may train an image model beside its language model."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("projects", sa.Column("image_model", sa.Text, nullable=False, server_default=""))
