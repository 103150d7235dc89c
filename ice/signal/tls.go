package signal

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
)

// Fingerprint is the SHA-256 of a certificate's DER form. A node's token carries the portal's, so that sign-in needs no
// certificate authority.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the fingerprint of a certificate in DER.
func FingerprintOf(der []byte) Fingerprint { return sha256.Sum256(der) }

// TLSConfig returns the configuration of a client that accepts exactly the server whose certificate has the fingerprint;
// names, dates and issuers play no part, so a clock that is hours off does no harm. Others fail with ErrFingerprint. Keys are agreed
// upon with X25519 and ML-KEM-768 together, and never otherwise: preshared keys come over this connection, and who records it
// today must not read them with a quantum computer.
func (f Fingerprint) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		// The chain is not verified because VerifyConnection compares the leaf, at every handshake; the handshake proves
		// that the server has its key.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return ErrFingerprint
			}
			got := FingerprintOf(cs.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], f[:]) != 1 {
				return ErrFingerprint
			}
			return nil
		},
	}
}
