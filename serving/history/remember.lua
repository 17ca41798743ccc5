-- Remembers scans and recalls their trails and the counters of their lots.
--
-- KEYS   for each lot its groups, its moves and its free numbers, then its trails.
-- ARGV   1 ms that an unsold trail is kept, 2 a sold one, 3 a lot,
--        4 most scans of a trail, 5 most groups of a lot,
--        6 number of trails of each lot (u4),
--        7 serial (i4) and number of given scans (u4) of each trail,
--        8 the given scans: 20 bytes each, distinct, in trail order.
-- Answer one string that says of each given scan whether it is new ('\1'), then for each lot its
--        groups, its moves, and its trails.
--
-- A group is time i8, place u4, n u4, low i4, high i4, number u4, in the order of (time, place); a
-- move is end u4, start u4, n u4, in the order of (end, start), which name groups by their number.
-- A lot's numbers in use and its free ones are 0, 1, ... without a gap.

local GROUP, MOVE = 28, 12
local SALE = 9

local idle_ms, sale_ms, lot_ms = ARGV[1], ARGV[2], ARGV[3]
local most_scans, most_groups = tonumber(ARGV[4]), tonumber(ARGV[5])
local trails_of, given_of, given = ARGV[6], ARGV[7], ARGV[8]

local function sold(trail)
  for at = 9, #trail, SCAN do
    if byte(trail, at) % 16 == SALE then return true end
  end
  return false
end

-- Changes of one lot's counters, by the names of groups and by pairs of names.
local counts, low, high, moves

local function count(group, n, serial)
  counts[group] = (counts[group] or 0) + n
  if n > 0 then
    low[group] = math.min(low[group] or serial, serial)
    high[group] = math.max(high[group] or serial, serial)
  end
end

local function move(from, to, n)
  local pair = from .. to
  moves[pair] = (moves[pair] or 0) + n
end

-- Puts `n` given scans, from byte `at`, into a trail; returns it, and adds to `flags`.
local function insert(trail, serial, n, at, flags)
  local size = #trail / SCAN
  local pieces, taken = {}, 0
  local gap, last = 0, nil -- the last new scan stands after the gap-th scan, in group `last`
  local function close()
    if last and gap < size then
      local following = name(trail, gap + 1)
      if gap > 0 then move(name(trail, gap), following, -1) end
      move(last, following, 1)
    end
  end
  for i = 1, n do
    local scan = sub(given, at, at + SCAN - 2)
    at = at + SCAN - 1
    local time, place = unpack('<i8I4', scan)
    local here = upto(trail, gap, time, place)
    if where(trail, here, scan) then
      flags[#flags + 1] = '\0'
    else
      flags[#flags + 1] = '\1'
      local group = sub(scan, 1, NAME)
      count(group, 1, serial)
      if last and here == gap then
        move(last, group, 1)
      else
        close()
        if here > 0 then move(name(trail, here), group, 1) end
        pieces[#pieces + 1] = sub(trail, taken * SCAN + 1, here * SCAN)
        taken, gap = here, here
      end
      pieces[#pieces + 1] = scan
      pieces[#pieces + 1] = '\0'
      last = group
    end
  end
  if not last then return trail, false end
  close()
  pieces[#pieces + 1] = sub(trail, taken * SCAN + 1)
  return concat(pieces), true
end

-- The trail without the oldest scans that are too many.
local function shortened(trail, serial)
  local excess = #trail / SCAN - most_scans
  for i = 1, excess do
    count(name(trail, i), -1, serial)
    move(name(trail, i), name(trail, i + 1), -1)
  end
  return excess > 0 and sub(trail, excess * SCAN + 1) or trail
end

local function remember(key, serial, n, at, flags)
  local before = call('GET', key) or ''
  local trail, changed = insert(before, serial, n, at, flags)
  if not changed then
    if not sold(before) then call('PEXPIRE', key, idle_ms) end
    return trail
  end
  local kept = shortened(trail, serial)
  local new_sale = false
  local first = #flags - n
  for i = 1, n do
    local op = byte(given, at + (i - 1) * (SCAN - 1) + 8) % 16
    new_sale = new_sale or (op == SALE and flags[first + i] == '\1')
  end
  if new_sale then
    call('SET', key, kept, 'PX', sale_ms)
  elseif before ~= '' and sold(kept) then
    call('SET', key, kept, 'KEEPTTL')
  else
    call('SET', key, kept, 'PX', idle_ms)
  end
  return trail
end

-- Place from 0 of the first of some sorted records whose two keys are not below (a, b).
local function place_of(array, size, form, a, b)
  local from, to = 0, #array / size
  local middle = to - 1 -- most often it is the last one, or behind it
  while from < to do
    local x, y = unpack(form, array, middle * size + 1)
    if x < a or (x == a and y < b) then from = middle + 1 else to = middle end
    middle = floor((from + to) / 2)
  end
  return from
end

local function by_keys(one, other)
  if one[1] ~= other[1] then return one[1] < other[1] end
  return one[2] < other[2]
end

-- Finds the place `at` of each edit {first key, second key, ...} in sorted records, and the record
-- `there`, or nil.
local function locate(array, size, form, edits)
  local n = #array / size
  for i = 1, #edits do
    local e = edits[i]
    e.at = place_of(array, size, form, e[1], e[2])
    if e.at < n then
      local x, y = unpack(form, array, e.at * size + 1)
      if x == e[1] and y == e[2] then e.there = sub(array, e.at * size + 1, (e.at + 1) * size) end
    end
  end
end

-- Sorted records with the `value` of each edit in place of what is there, or before it.
local function edited(array, size, edits)
  local pieces, taken = {}, 0
  for i = 1, #edits do
    local e = edits[i]
    if e.at > taken then pieces[#pieces + 1] = sub(array, taken * size + 1, e.at * size) end
    pieces[#pieces + 1] = e.value
    taken = e.there and e.at + 1 or e.at
  end
  if #pieces == 0 then return array end
  pieces[#pieces + 1] = sub(array, taken * size + 1)
  return concat(pieces)
end

-- Groups with this lot's changes, and the free numbers without those now used; the numbers of
-- groups that ended are keys of `gone`.
local function groups_now(groups, free, gone)
  local edits = {}
  for group, n in pairs(counts) do
    if n ~= 0 or low[group] then
      local time, place = unpack('<i8I4', group)
      edits[#edits + 1] = {time, place, n = n, group = group, value = ''}
    end
  end
  table.sort(edits, by_keys)
  locate(groups, GROUP, '<i8I4', edits)
  local room = most_groups - #groups / GROUP
  for i = 1, #edits do
    local e = edits[i]
    if e.there then
      local was, lowest, highest, number = unpack('<I4i4i4I4', e.there, NAME + 1)
      if was + e.n > 0 then
        lowest = math.min(lowest, low[e.group] or lowest)
        highest = math.max(highest, high[e.group] or highest)
        e.value = e.group .. pack('<I4i4i4I4', was + e.n, lowest, highest, number)
      else
        gone[number] = true
        room = room + 1
      end
    end
  end
  local fresh = (#groups / GROUP) + (#free / 4)
  for i = 1, #edits do
    local e = edits[i]
    if not e.there and e.n > 0 and room > 0 then
      local number = fresh
      if free ~= '' then
        number = unpack('<I4', free, #free - 3)
        free = sub(free, 1, -5)
      else
        fresh = fresh + 1
      end
      e.value = e.group .. pack('<I4i4i4I4', e.n, low[e.group], high[e.group], number)
      room = room - 1
    end
  end
  return edited(groups, GROUP, edits), free
end

-- Moves without those from or to groups that ended.
local function without(array, gone)
  local pieces = {}
  for at = 1, #array, MOVE do
    local to, from = unpack('<I4I4', array, at)
    if not gone[to] and not gone[from] then
      pieces[#pieces + 1] = sub(array, at, at + MOVE - 1)
    end
  end
  return concat(pieces)
end

-- Moves with this lot's changes.
local function moves_now(array, groups)
  local numbers = {}
  local function number_of(group)
    local number = numbers[group]
    if number == nil then
      local time, place = unpack('<i8I4', group)
      local at = place_of(groups, GROUP, '<i8I4', time, place) * GROUP
      number = sub(groups, at + 1, at + NAME) == group and unpack('<I4', groups, at + GROUP - 3)
      numbers[group] = number
    end
    return number
  end
  local edits = {}
  for pair, n in pairs(moves) do
    if n ~= 0 then
      local from, to = number_of(sub(pair, 1, NAME)), number_of(sub(pair, NAME + 1))
      if from and to then edits[#edits + 1] = {to, from, n = n} end
    end
  end
  table.sort(edits, by_keys)
  locate(array, MOVE, '<I4I4', edits)
  for i = 1, #edits do
    local e = edits[i]
    local n = e.n + (e.there and unpack('<I4', e.there, 9) or 0)
    e.value = n > 0 and pack('<I4I4I4', e[1], e[2], n) or ''
  end
  return edited(array, MOVE, edits)
end

local function write(key, value, before)
  if value == before then
    call('PEXPIRE', key, lot_ms)
  else
    call('SET', key, value, 'PX', lot_ms)
  end
end

-- Counters of a lot with its changes, written.
local function mend(groups_key, moves_key, free_key)
  local groups, steps = call('GET', groups_key) or '', call('GET', moves_key) or ''
  local free = call('GET', free_key) or ''
  local gone = {}
  local groups_after, free_after = groups_now(groups, free, gone)
  local steps_after = next(gone) and without(steps, gone) or steps
  steps_after = moves_now(steps_after, groups_after)
  write(groups_key, groups_after, groups)
  write(moves_key, steps_after, steps)
  for number in pairs(gone) do free_after = free_after .. pack('<I4', number) end
  write(free_key, free_after, free)
  return groups_after, steps_after
end

local answer, flags = {''}, {}
local key, trail, at = 1, 0, 1
for lot = 1, #trails_of / 4 do
  counts, low, high, moves = {}, {}, {}, {}
  local own, place = key, #answer
  answer[place + 1], answer[place + 2] = '', ''
  key = key + 3
  for _ = 1, unpack('<I4', trails_of, lot * 4 - 3) do
    local serial, n = unpack('<i4I4', given_of, trail * 8 + 1)
    answer[#answer + 1] = remember(KEYS[key], serial, n, at, flags)
    key, trail, at = key + 1, trail + 1, at + n * (SCAN - 1)
  end
  answer[place + 1], answer[place + 2] = mend(KEYS[own], KEYS[own + 1], KEYS[own + 2])
end
answer[1] = concat(flags)
return answer
