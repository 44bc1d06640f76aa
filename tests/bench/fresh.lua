-- For wrk: POST /v1/tasks with a new key per request. With the argument `replay`, all requests have the same key. With
-- `batch`, POST /v1/tasks/batch with 1,000 tasks and a new key per request.
local task = '"type":"text_classification","data_url":"https://cdn.example.com/doc.txt",' ..
    '"label_spec":{"question":"Document category?","options":["invoice","receipt","other"]},' ..
    '"consensus_threshold":3'
local path, head, tail = "/v1/tasks", "{" .. task .. ',"idempotency_key":"', '"}'
local count, tag, replay, threads = 0, "", false, 0

function setup(thread)
    threads = threads + 1
    thread:set("number", threads)
end

function init(args)
    replay = args[1] == "replay"
    if args[1] == "batch" then
        path = "/v1/tasks/batch"
        head = '{"tasks":[' .. string.rep("{" .. task .. "},", 999) .. "{" .. task .. '}],"idempotency_key":"'
    end
    tag = string.format("%s-%d-", args[2] or "", number)
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Authorization"] = "Bearer " .. (args[3] or "key")
end

function request()
    count = count + 1
    return wrk.format("POST", path, nil, head .. (replay and "replayed" or tag .. count) .. tail)
end

function done(summary, latency)
    io.write(string.format('JSON {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
