-- Trails as bytes: what the scripts of remembering and of marking share; it stands before them.
--
-- Records are those of packed.py, little-endian: a scan is time i8, place u4, event id 8 bytes,
-- said u1. Scans lie in the order of (time, operation, site). Microseconds since 1970 fit in a
-- double exactly; event ids stay bytes.

local SCAN, NAME = 21, 12
local unpack, pack = struct.unpack, struct.pack
local sub, byte, concat, floor = string.sub, string.byte, table.concat, math.floor
local call = redis.call

-- Name of the group of the i-th scan of a trail: its time and place.
local function name(trail, i)
  return sub(trail, (i - 1) * SCAN + 1, (i - 1) * SCAN + NAME)
end

-- Whether the i-th scan of a trail comes after (time, place).
local function after(trail, i, time, place)
  local t, p = unpack('<i8I4', trail, (i - 1) * SCAN + 1)
  if t ~= time then return t > time end
  local op, other = p % 16, place % 16
  if op ~= other then return op > other end
  return p > place
end

-- How many scans of a trail are not after (time, place), of which `low` are known to be.
local function upto(trail, low, time, place)
  local high = #trail / SCAN
  local middle = high
  while low < high do
    if after(trail, middle, time, place) then high = middle - 1 else low = middle end
    middle = floor((low + high + 1) / 2)
  end
  return low
end

-- Place of a scan (20 bytes) among those of a trail up to the i-th, or nil.
local function where(trail, i, scan)
  local group = sub(scan, 1, NAME)
  while i > 0 and name(trail, i) == group do
    local from = (i - 1) * SCAN + 1
    if sub(trail, from, from + SCAN - 2) == scan then return i end
    i = i - 1
  end
  return nil
end
