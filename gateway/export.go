package gateway

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// exportRoute serves the raw export in Mixpanel's shape
// (https://developer.mixpanel.com/reference/raw-event-export), each event once.
func exportRoute(mux *http.ServeMux, client ingestionv1.DataServiceClient) {
	mux.HandleFunc("GET /api/2.0/export", func(w http.ResponseWriter, r *http.Request) {
		req, err := exportRequest(r)
		if err != nil {
			mixpanelError(w, http.StatusBadRequest, err.Error())
			return
		}
		ctx := metadata.AppendToOutgoingContext(r.Context(), "authorization", r.Header.Get("Authorization"))
		stream, err := client.ExportEvents(ctx, req)
		if err != nil {
			exportError(w, err)
			return
		}
		out := bufio.NewWriterSize(w, 64<<10)
		ms := r.URL.Query().Get("time_in_ms") == "true"
		for started := false; ; started = true {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				if !started {
					exportError(w, err)
					return
				}
				// The status line is gone: cut the connection, so that half an
				// export can't be taken for a whole one.
				panic(http.ErrAbortHandler)
			}
			if !started {
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			}
			for _, e := range chunk.GetEvents() {
				if err := writeEvent(out, e, ms); err != nil {
					panic(http.ErrAbortHandler)
				}
			}
		}
		if err := out.Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
}

func exportRequest(r *http.Request) (*ingestionv1.ExportEventsRequest, error) {
	q := r.URL.Query()
	if q.Get("project_id") == "" {
		return nil, errors.New("project_id is required")
	}
	if q.Get("where") != "" {
		return nil, errors.New("where: an export can't be filtered by an expression; filter by event")
	}
	req := &ingestionv1.ExportEventsRequest{Parent: "projects/" + q.Get("project_id"), FromDate: q.Get("from_date"), ToDate: q.Get("to_date")}
	if names := q.Get("event"); names != "" {
		if err := json.Unmarshal([]byte(names), &req.Events); err != nil {
			return nil, errors.New("event: want a JSON array of names")
		}
	}
	if limit := q.Get("limit"); limit != "" {
		n, err := strconv.ParseInt(limit, 10, 64)
		if err != nil || n < 1 || n > 100_000 {
			return nil, errors.New("limit: want a number from 1 to 100000")
		}
		req.Limit = n
	}
	return req, nil
}

func exportError(w http.ResponseWriter, err error) {
	s := status.Convert(err)
	mixpanelError(w, runtime.HTTPStatusFromCode(s.Code()), s.Message())
}

// writeEvent writes one line. The stored properties are merged with those that
// are columns of their own.
func writeEvent(out io.Writer, e *ingestionv1.ExportedEvent, ms bool) error {
	var stored map[string]json.RawMessage
	if p := e.GetPropertiesJson(); p != "" {
		if err := json.Unmarshal([]byte(p), &stored); err != nil {
			return fmt.Errorf("stored properties: %w", err)
		}
	}
	props := make(map[string]any, len(stored)+4)
	for k, v := range maps.All(stored) {
		props[k] = v
	}
	t := e.GetTime().AsTime()
	props["time"] = t.Unix()
	if ms {
		props["time"] = t.UnixMilli()
	}
	props["distinct_id"], props["$insert_id"] = e.GetDistinctId(), e.GetInsertId()
	// An event is judged when it is received, so both times are one.
	props["$mp_api_timestamp_ms"] = e.GetProcessingTime().AsTime().UnixMilli()
	props["mp_processing_time_ms"] = props["$mp_api_timestamp_ms"]
	line, err := json.Marshal(map[string]any{"event": e.GetEvent(), "properties": props})
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}
