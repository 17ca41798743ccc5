-- Numbers sites, entering new ones at the end of the book.
--
-- KEYS   1 number by id (hash), 2 entries (list).
-- ARGV   three for each site: id, '1' where the entry replaces one that is there, the entry.

local numbers = {}
for i = 1, #ARGV, 3 do
  local number = redis.call('HGET', KEYS[1], ARGV[i])
  if not number then
    number = redis.call('RPUSH', KEYS[2], ARGV[i + 2]) - 1
    redis.call('HSET', KEYS[1], ARGV[i], number)
  elseif ARGV[i + 1] == '1' then
    redis.call('LSET', KEYS[2], number, ARGV[i + 2])
  end
  numbers[#numbers + 1] = tonumber(number)
end
return numbers
