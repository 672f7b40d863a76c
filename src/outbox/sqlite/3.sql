-- Whose a code is, the device is still to be asked: until then it replaces nothing and is replaced by nothing.
ALTER TABLE activation ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 0;
