-- Whose a code is, the device is still to be asked: until then it replaces nothing and is replaced by nothing.
ALTER TABLE activation ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 0;

-- An activation ends codes of its own token alone, which has an index.
DROP INDEX activation_activated;
