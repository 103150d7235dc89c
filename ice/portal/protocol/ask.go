package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// MaxAnswer bounds an answer of the portal, in bytes of JSON.
const MaxAnswer = 2 << 20

// MaxRequest bounds a request to the portal, in bytes of JSON.
const MaxRequest = 16 << 10

// Ask is one request over the bus. It waits for the answer until ctx ends, which should be more than SyncHold away.
func Ask(ctx context.Context, bus *signal.Bus, r SyncRequest) (Sync, error) {
	via, err := bus.Remote(ctx)
	if err != nil {
		return Sync{}, err
	}
	r.Via = via
	data, err := json.Marshal(r)
	if err != nil {
		return Sync{}, fmt.Errorf("protocol: %w", err)
	}
	answer, err := bus.Request(ctx, Verb, data)
	if err != nil {
		return Sync{}, err
	}
	return DecodeSync(answer)
}

// ErrAnswer: the portal has answered, with something that this program does not understand.
var ErrAnswer = errors.New("this program does not understand the portal's answer")

// DecodeSync parses and validates an answer. Errors are ErrAnswer.
func DecodeSync(data []byte) (Sync, error) {
	var s Sync
	if len(data) > MaxAnswer {
		return Sync{}, fmt.Errorf("protocol: %w, which is longer than %d bytes", ErrAnswer, MaxAnswer)
	}
	err := decode(data, &s)
	if err == nil {
		err = s.Validate()
	}
	if err != nil {
		return Sync{}, fmt.Errorf("protocol: %w (%w); update the older of the two", ErrAnswer, err)
	}
	return s, nil
}

// DecodeRequest parses and validates a request. ErrForm: it is none that we know; any other error says in one sentence what the
// node has to change.
func DecodeRequest(data []byte) (SyncRequest, error) {
	var r SyncRequest
	if len(data) > MaxRequest {
		return SyncRequest{}, fmt.Errorf("the request has %d bytes, more than %d; offer fewer routes", len(data), MaxRequest)
	}
	if err := decode(data, &r); err != nil {
		return SyncRequest{}, err
	}
	if err := r.Validate(); err != nil {
		return SyncRequest{}, err
	}
	return r, nil
}

// ErrForm is what is no JSON of this protocol: another program's, or that of another age.
var ErrForm = errors.New("not JSON of the right form")

// decode reads one JSON object and nothing behind it. Unknown keys are ignored, so that a newer program can say more.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return ErrForm
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the JSON object", ErrForm)
	}
	return nil
}
