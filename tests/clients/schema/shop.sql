-- A schema with what a dump must carry: functions, triggers, foreign keys, views, sequences, domains, large objects.
create schema shop;
create domain shop.email as text check (value like '%@%');
create type shop.state as enum ('new', 'paid', 'sent');
create table shop.customer (id int generated always as identity primary key, email shop.email not null unique);
create table shop.purchase (
    id bigserial primary key,
    customer int not null references shop.customer (id) on delete cascade,
    state shop.state not null default 'new',
    cents int not null check (cents > 0),
    photo oid
);
create table shop.history (purchase bigint, was shop.state, became shop.state, at timestamptz default now());
create index purchase_by_state on shop.purchase (state) where state <> 'sent';
create function shop.remember() returns trigger language plpgsql as $$
begin
    insert into shop.history (purchase, was, became) values (new.id, old.state, new.state);
    return new;
end $$;
create trigger remember after update of state on shop.purchase for each row execute function shop.remember();
create function shop.total(of_customer int) returns bigint language sql stable as
    $$ select coalesce(sum(cents), 0) from shop.purchase where customer = of_customer $$;
create view shop.spender as select email, shop.total(id) as cents from shop.customer;
create materialized view shop.summary as select state, count(*) from shop.purchase group by state;
insert into shop.customer (email) select 'person' || n || '@example.org' from generate_series(1, 200) n;
insert into shop.purchase (customer, cents) select 1 + n % 200, 1 + n from generate_series(1, 5000) n;
update shop.purchase set state = 'paid' where id % 7 = 0;
update shop.purchase set photo = lo_from_bytea(0, decode(repeat('c0ffee', 5000), 'hex')) where id <= 20;
refresh materialized view shop.summary;
comment on table shop.purchase is 'What was bought; "quoted" and ''quoted''';
