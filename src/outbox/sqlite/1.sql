-- Times are microseconds since 1970, durations are microseconds. Nothing in here is a code in clear.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: a number that was shown to people never names another row.
CREATE TABLE activation (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  event_id    TEXT NOT NULL,
  code_mac    BLOB NOT NULL,               -- empty: no code
  sealed      BLOB,                        -- code and addresses; NULL once wiped
  device_id   TEXT NOT NULL,
  device_name TEXT NOT NULL,
  vdom        TEXT NOT NULL,
  user        TEXT NOT NULL,
  person      TEXT NOT NULL,
  logid       INTEGER NOT NULL,
  description TEXT NOT NULL,
  stage       TEXT NOT NULL,
  rule        TEXT NOT NULL,
  event_time  INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  expires_at  INTEGER NOT NULL,
  validity    INTEGER NOT NULL,
  skew        INTEGER NOT NULL,
  token       TEXT,
  state       TEXT NOT NULL CHECK (state IN ('received', 'routed', 'needs-attention', 'expired', 'superseded', 'cancelled', 'recorded')),
  reason      TEXT,
  fence       INTEGER NOT NULL DEFAULT 0,
  leased      INTEGER NOT NULL DEFAULT 0,
  attempt     INTEGER NOT NULL DEFAULT 0,
  due_at      INTEGER,                     -- look again, or the lease runs out; NULL: only when something happens
  released    INTEGER NOT NULL DEFAULT 0,
  reached     INTEGER NOT NULL DEFAULT 0,
  told        TEXT NOT NULL DEFAULT '[]',
  recipient   TEXT,
  limit_key   TEXT,
  routed_at   INTEGER,
  UNIQUE (event_id, code_mac)
) STRICT;

CREATE INDEX activation_due      ON activation (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX activation_person   ON activation (device_id, vdom, person, event_time);
CREATE INDEX activation_open     ON activation (device_id, vdom, person, event_time) WHERE state IN ('received', 'routed', 'needs-attention');
CREATE INDEX activation_limit    ON activation (limit_key, routed_at) WHERE limit_key IS NOT NULL;
CREATE INDEX activation_state    ON activation (state, expires_at);
CREATE INDEX activation_sealed   ON activation (expires_at) WHERE sealed IS NOT NULL;
CREATE INDEX activation_received ON activation (received_at);

CREATE TABLE delivery (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  activation   INTEGER REFERENCES activation (id) ON DELETE CASCADE,
  channel      TEXT NOT NULL,
  role         TEXT NOT NULL CHECK (role IN ('to', 'fallback', 'escalation')),
  on_uncertain TEXT NOT NULL CHECK (on_uncertain IN ('resend', 'hold')),
  message_id   TEXT NOT NULL UNIQUE,
  state        TEXT NOT NULL CHECK (state IN ('pending', 'leased', 'sending', 'accepted', 'failed', 'expired', 'superseded', 'cancelled', 'needs-attention')),
  ends_as      TEXT,                       -- what becomes of it if the try under way doesn't bring it there
  fence        INTEGER NOT NULL DEFAULT 0,
  attempt      INTEGER NOT NULL DEFAULT 0,
  due_at       INTEGER CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'leased', 'sending'))),
  received_at  INTEGER NOT NULL,
  expires_at   INTEGER NOT NULL,
  last_error   TEXT,
  reason       TEXT,                       -- escalations: the key under which they are gathered
  first_due_at INTEGER,                    -- escalations: when this one could go out first
  escalation   TEXT,                       -- escalations: what is said
  CHECK ((role = 'escalation') = (activation IS NULL)),
  CHECK ((role = 'escalation') = (escalation IS NOT NULL)),
  UNIQUE (activation, channel)
) STRICT;

CREATE INDEX delivery_due        ON delivery (channel, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX delivery_busy       ON delivery (due_at) WHERE state IN ('leased', 'sending');
CREATE INDEX delivery_open       ON delivery (expires_at) WHERE state IN ('pending', 'leased', 'sending', 'needs-attention');
CREATE INDEX delivery_escalation ON delivery (channel, reason, first_due_at) WHERE role = 'escalation';

CREATE TABLE history (
  id         INTEGER PRIMARY KEY,
  activation INTEGER REFERENCES activation (id) ON DELETE CASCADE,
  delivery   INTEGER REFERENCES delivery (id) ON DELETE CASCADE,
  at         INTEGER NOT NULL,
  channel    TEXT,
  what       TEXT NOT NULL
) STRICT;

CREATE INDEX history_activation ON history (activation) WHERE activation IS NOT NULL;
CREATE INDEX history_delivery   ON history (delivery) WHERE delivery IS NOT NULL;
