-- What the device said about a code, and the proof of every step.
ALTER TABLE activation ADD COLUMN standing TEXT NOT NULL DEFAULT 'logged' CHECK (standing IN ('logged', 'provisional', 'confirmed'));
ALTER TABLE activation ADD COLUMN found_mac BLOB;          -- the mark of a code that the device named; the log showed none
ALTER TABLE activation ADD COLUMN trace TEXT NOT NULL DEFAULT '[]';

CREATE INDEX activation_activated ON activation (device_id, person) WHERE stage = 'activated' AND standing = 'confirmed';
CREATE INDEX activation_token     ON activation (device_id, token) WHERE token IS NOT NULL;
