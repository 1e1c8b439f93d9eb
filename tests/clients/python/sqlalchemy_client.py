"""SQLAlchemy over psycopg: tables, a relationship, a transaction that is rolled back, reflection."""

import os

from sqlalchemy import ForeignKey, create_engine, inspect, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "alchemy_author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list["Book"]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "alchemy_book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("alchemy_author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


url = URL.create("postgresql+psycopg", username=os.environ["PGUSER"], password=os.environ["PGPASSWORD"],
                 host="localhost", port=int(os.environ["PGPORT"]), database="defaultdb")
engine = create_engine(url, pool_size=3)
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add(Author(name="Ada", books=[Book(title="Notes"), Book(title="More notes")]))
    session.commit()
    session.add(Author(name="nobody"))
    session.flush()
    session.rollback()
    ada = session.scalars(select(Author)).one()
    assert sorted(book.title for book in ada.books) == ["More notes", "Notes"]
assert {"alchemy_author", "alchemy_book"} <= set(inspect(engine).get_table_names())
Base.metadata.drop_all(engine)
print("sqlalchemy ok")
