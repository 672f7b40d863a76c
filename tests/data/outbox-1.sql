-- An outbox as version 1 wrote it: `sqlite3 outbox.db .dump`, with the two pragmas that a dump leaves out.
BEGIN TRANSACTION;
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
INSERT INTO "activation" VALUES(1,'alice-1795429351',X'C6C5BEA8AC2FFB0ACD976AA9BF9D4554F31F90B2BE6DB4DF602632A1C5660BF6',X'01BDE414A6ADDC2C0F22DCE24E0C1E916027CAB1622259AEB053F8D64130AC492B7ABE996D579E75DCF682870E33D2D70EA1FF79D37BBC994534DE669A2A6E0DFE2E1B44B273C4A666B7A4694F8D5E35B1679FAD81507F41850E','FGT60FTK19009408','BORDER-FGT','root','alice','alice',38412,'Token activation code sent','code-sent','activation code',1795429351000000,1795429351000000,4102444800000000,259200000000,-1500000,NULL,'routed',NULL,4,0,0,1795429951000000,0,0,'[]','{"email":"alice@example.com","name":null,"phone":null,"language":null,"source":"table"}',NULL,NULL);
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
INSERT INTO "delivery" VALUES(1,1,'mail','to','resend','fc899d6c5113b28e9928e53bb9a050ac','pending',NULL,2,2,1795429396000000,1795429351000000,4102444800000000,'451 later',NULL,NULL,NULL);
INSERT INTO "delivery" VALUES(2,NULL,'desk','escalation','resend','35cea493a26edfc51339bb0f5d2c4606','pending',NULL,0,0,1795429411000000,1795429411000000,1795515811000000,NULL,'suspended:mail',1795429411000000,'{"text":"Something is wrong","count":1,"newest":["535 authentication failed"]}');
CREATE TABLE history (
  id         INTEGER PRIMARY KEY,
  activation INTEGER REFERENCES activation (id) ON DELETE CASCADE,
  delivery   INTEGER REFERENCES delivery (id) ON DELETE CASCADE,
  at         INTEGER NOT NULL,
  channel    TEXT,
  what       TEXT NOT NULL
) STRICT;
INSERT INTO "history" VALUES(1,1,NULL,1795429351000000,NULL,'received, with a code');
INSERT INTO "history" VALUES(2,1,NULL,1795429351000000,NULL,'goes out by mail, to a…@example.com (from table)');
INSERT INTO "history" VALUES(3,1,1,1795429366000000,'mail','try 1 failed: 451 later');
INSERT INTO "history" VALUES(4,1,1,1795429381000000,'mail','try 2 failed: 451 later');
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('key-check',X'242B8BA54B281277ED1D33898FE314F2');
CREATE INDEX activation_due      ON activation (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX activation_person   ON activation (device_id, vdom, person, event_time);
CREATE INDEX activation_open     ON activation (device_id, vdom, person, event_time) WHERE state IN ('received', 'routed', 'needs-attention');
CREATE INDEX activation_limit    ON activation (limit_key, routed_at) WHERE limit_key IS NOT NULL;
CREATE INDEX activation_state    ON activation (state, expires_at);
CREATE INDEX activation_sealed   ON activation (expires_at) WHERE sealed IS NOT NULL;
CREATE INDEX activation_received ON activation (received_at);
CREATE INDEX delivery_due        ON delivery (channel, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX delivery_busy       ON delivery (due_at) WHERE state IN ('leased', 'sending');
CREATE INDEX delivery_open       ON delivery (expires_at) WHERE state IN ('pending', 'leased', 'sending', 'needs-attention');
CREATE INDEX delivery_escalation ON delivery (channel, reason, first_due_at) WHERE role = 'escalation';
CREATE INDEX history_activation ON history (activation) WHERE activation IS NOT NULL;
CREATE INDEX history_delivery   ON history (delivery) WHERE delivery IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('activation',1);
INSERT INTO "sqlite_sequence" VALUES('delivery',2);
COMMIT;
PRAGMA application_id = 1718906226;
PRAGMA user_version = 1;
