-- What `nsys export --type sqlite` writes of a sweep, as far as it is read: tables and columns as
-- NVIDIA's user guide documents them (SQLite schema reference), rows made by hand.  One layer runs
-- before it is captured, is captured (node 100), and is replayed twice (its clone, node 200).
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE TARGET_INFO_GPU (id INTEGER NOT NULL, name TEXT, busLocation TEXT);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
  rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
  endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, uint64Value INTEGER, int64Value INTEGER,
  doubleValue REAL, uint32Value INTEGER, int32Value INTEGER, floatValue REAL, jsonTextId INTEGER,
  jsonText TEXT, binaryData TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
  eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL,
  returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
  correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
  shortName INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
  correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL,
  graphNodeId INTEGER);
CREATE TABLE CUDA_GRAPH_NODE_EVENTS (start INTEGER NOT NULL, end INTEGER NOT NULL,
  eventClass INTEGER NOT NULL, globalTid INTEGER, nameId INTEGER NOT NULL,
  graphNodeId INTEGER NOT NULL, originalGraphNodeId INTEGER);
INSERT INTO StringIds VALUES (1, 'sweep'), (2, 'Bag'), (3, 'conv'), (4, 'conv1'),
  (5, 'captured pass'), (6, 'capture'), (7, 'multiply-adds'), (8, 'bytes'), (9, 'commit'),
  (10, 'cudaLaunchKernel_v7000'), (11, 'cudaGraphLaunch_v10000'), (12, 'gemm_kernel'),
  (13, 'void gemm_kernel<float, 128>(float*)'), (14, 'copy_kernel'), (15, 'cudaMemcpyAsync_v3020'),
  (16, 'Graph Node Creation');
INSERT INTO TARGET_INFO_GPU VALUES (0, 'NVIDIA H100 80GB HBM3', '0000:01:00.0');
-- domains (75), their categories (33); another library's domain is not ours
INSERT INTO NVTX_EVENTS (start, eventType, text, globalTid, domainId, category) VALUES
  (0, 75, 'circuitcore', 83886085, 7, NULL), (0, 75, 'NCCL', 83886085, 8, NULL),
  (0, 33, 'run', 83886085, 7, 1), (0, 33, 'category', 83886085, 7, 2),
  (0, 33, 'stage', 83886085, 7, 3), (0, 33, 'level', 83886085, 7, 4),
  (0, 33, 'layer', 83886085, 7, 5), (0, 33, 'work', 83886085, 7, 6);
-- ranges (59); one without an end was open when recording ended
INSERT INTO NVTX_EVENTS (start, end, eventType, textId, globalTid, domainId, category, int64Value)
  VALUES
  (0, 100000, 59, 1, 83886085, 7, 1, NULL), (1000, 99000, 59, 2, 83886085, 7, 2, 8),
  (2000, 90000, 59, 3, 83886085, 7, 3, NULL), (3000, 4000, 59, 4, 83886085, 7, 5, NULL),
  (10000, 12000, 59, 6, 83886085, 7, 3, NULL), (10100, 11000, 59, 4, 83886085, 7, 5, NULL),
  (20000, 40000, 59, 3, 83886085, 7, 4, 4), (20100, 20300, 59, 5, 83886085, 7, 5, 64),
  (20400, 20600, 59, 5, 83886085, 7, 5, 64), (50000, NULL, 59, 9, 83886086, 7, 3, NULL);
INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid, domainId, category)
  VALUES (0, 100000, 59, 'ncclAllReduce', 83886085, 8, 3);
-- marks (34): what a layer does
INSERT INTO NVTX_EVENTS (start, eventType, textId, globalTid, domainId, category, int64Value) VALUES
  (3900, 34, 7, 83886085, 7, 6, 500), (3910, 34, 8, 83886085, 7, 6, 40),
  (10900, 34, 7, 83886085, 7, 6, 500), (10910, 34, 8, 83886085, 7, 6, 40),
  (20290, 34, 7, 83886085, 7, 6, 500), (20590, 34, 7, 83886085, 7, 6, 500);
INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES
  (3100, 3200, 0, 83886085, 1, 10, 0, NULL), (20150, 20250, 0, 83886085, 2, 11, 0, NULL),
  (20450, 20550, 0, 83886085, 3, 11, 0, NULL), (45000, 45100, 0, 83886085, 4, 15, 0, NULL);
INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES
  (5000, 7000, 0, 1, 7, 1, 83886080, 13, 12, NULL),
  (21000, 24000, 0, 1, 7, 2, 83886080, 13, 12, 200),
  (24000, 24500, 0, 1, 7, 2, 83886080, 14, 14, 201),
  (25000, 28000, 0, 1, 7, 3, 83886080, 13, 12, 200),
  (28000, 28500, 0, 1, 7, 3, 83886080, 14, 14, 201);
INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES
  (46000, 46500, 0, 1, 7, 4, 83886080, 4096, 2, NULL);
INSERT INTO CUDA_GRAPH_NODE_EVENTS VALUES
  (10500, 10501, 0, 83886085, 16, 100, NULL), (11500, 11501, 0, 83886085, 16, 101, NULL),
  (13000, 13001, 0, 83886085, 16, 200, 100), (13001, 13002, 0, 83886085, 16, 201, 101);
