"""A project says of its own image model which VAE it has and what it predicts."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("projects", sa.Column("image_vae", sa.Text, nullable=False, server_default=""))
    op.add_column(
        "projects", sa.Column("image_prediction_type", sa.Text, nullable=False, server_default="auto")
    )
