-- Notes what was last said of scans; unknown ones are left alone.
--
-- KEYS   trails.
-- ARGV   1 number of scans of each trail (u4), 2 the scans: 21 bytes each, the last one what is said.

local at = 1
for i = 1, #KEYS do
  local trail = call('GET', KEYS[i]) or ''
  for _ = 1, unpack('<I4', ARGV[1], i * 4 - 3) do
    local time, place = unpack('<i8I4', ARGV[2], at)
    local scan = sub(ARGV[2], at, at + SCAN - 2)
    local there = where(trail, upto(trail, 0, time, place), scan)
    at = at + SCAN
    if there then call('SETRANGE', KEYS[i], there * SCAN - 1, sub(ARGV[2], at - 1, at - 1)) end
  end
end
